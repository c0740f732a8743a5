"""A small language whose true reward is known, and the pairs and policy made in it."""
