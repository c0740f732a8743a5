"""Tokenization: checked texts to token ids, with truncation and per-token values."""
