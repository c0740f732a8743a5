"""Which pairs form a batch, in which order, and how they become tensors."""
