"""Token ids of checked texts: chat templates, truncation, per-token columns."""
