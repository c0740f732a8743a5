"""Direct preference optimisation that is unbiased under flipped labels."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.target import Unbiased


class RobustDPO(Pairwise):
    """Robust DPO: over labels that are flipped with probability epsilon, the mean loss is DPO's loss of clean labels.

        L = [(1 - epsilon) l(x) - epsilon l(-x)] / (1 - 2 epsilon),    l(x) = -log sigmoid(x),    x = beta (h_w - h_l)

    epsilon = 0 is DPO. The loss is unbounded below: for large x it falls by epsilon / (1 - 2 epsilon) per unit of the
    logit, so watch `logits`. Close to epsilon = 1/2 both terms are large and nearly cancel.

    >>> RobustDPO(epsilon=0.2).target
    Unbiased(epsilon=0.2)

    **When**: the share of flipped labels is known, and training is stopped early. Not with an epsilon that is a
    guess on the high side: the loss then rewards ever larger logits. `CDPO` is the bounded alternative.

    **Source**: Provably Robust DPO, arXiv 2403.00409; derived from its unbiased estimate of the loss. Same as TRL's
    `robust` with `label_smoothing` epsilon.

    Args:
        beta: > 0, reward units per nat.
        epsilon: probability of a flipped label, in [0, 1/2).
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "noisy labels"

    def __init__(self, beta: float = 0.1, epsilon: float = 0.1, **parts: Any) -> None:
        super().__init__(beta=beta, target=Unbiased(epsilon), **parts)
