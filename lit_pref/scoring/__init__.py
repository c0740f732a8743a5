"""From a batch of token ids to the log-probs of its responses, without full logits."""
