"""From checked texts to token ids, through chat templates and truncation."""
