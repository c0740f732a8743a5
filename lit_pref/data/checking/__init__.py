"""Checks of canonical rows, which become pairs of texts with margin >= 0."""
