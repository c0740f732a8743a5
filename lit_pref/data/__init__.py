"""Pairs from files and hub datasets: read, checked, tokenized and batched."""
