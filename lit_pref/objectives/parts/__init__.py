"""The parts of a `Pairwise` objective, one kind per file; the first class of each kind is the default.

| part | decides | file |
|---|---|---|
| `reference` | the combination of K reference scores | `reference.py` |
| `temperature` | beta_i, made from the objective's `beta` | `temperature.py` |
| `target` | p_i, the probability that the chosen response is better | `target.py` |
| `link` | the loss of a logit | `link.py` |
| `tokens` | how token log-probs become the score of a response | `tokens.py` |
| `score` | phi, a function of the log-ratio | `score.py` |
| `offset` | o_i, subtracted from the logit | `offset.py` |
| `weight` | omega_i, a factor of the loss | `weight.py` |
| `terms` | further losses, each with a coefficient | `terms.py` |
"""
