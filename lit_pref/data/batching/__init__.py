"""Batches: the order of pairs, micro-batches of every rank, collation and loaders."""
