"""What HTML pages of results share: the base template, formatting, figures."""
