"""From files and hub datasets to batches of pairs."""
