"""Frozen reference models, live or read from a store of scores on disk."""
