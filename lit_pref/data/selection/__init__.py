"""Which training pairs are kept, and by which criterion."""
