"""Batches: the pairs that form one, their order, and their tensors."""
