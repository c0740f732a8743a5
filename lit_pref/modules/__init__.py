"""LightningModules: the training loop, validation, and the contents of a checkpoint."""
