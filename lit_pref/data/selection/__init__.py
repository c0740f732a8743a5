"""Selection of training pairs by a score of each pair."""
