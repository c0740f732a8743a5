"""Selection of training pairs by a criterion."""
