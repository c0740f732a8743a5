"""Log-probs of the responses of a batch, computed in tiles without full logits."""
