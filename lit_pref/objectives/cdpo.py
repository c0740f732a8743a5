"""Conservative direct preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.target import Smoothed


class CDPO(Pairwise):
    """Conservative DPO: the loss fits the probability 1 - epsilon that the chosen response is better.

        L = -(1 - epsilon) log sigmoid(x) - epsilon log sigmoid(-x),    x = beta (h_w - h_l)

    The minimum is at x = log((1 - epsilon) / epsilon), so that no pair is pushed apart without end. epsilon = 0 is DPO,
    and epsilon = 1/2 fits equal rewards.

    >>> CDPO(epsilon=0.2).target
    Smoothed(epsilon=0.2)

    **When**: some labels are wrong, with about the same probability for every pair. Not if the data say how certain
    each label is: see `MMPO` and `target: ProbabilityColumn` then.

    **Source**: cDPO, a note by Eric Mitchell (ericmitchell.ai/cdpo.pdf, equation 3), and `label_smoothing` in the
    authors' code of DPO, eric-mitchell/direct-preference-optimization. HALOs uses epsilon 0.2. TRL 1.16 has
    no such loss for DPO: its `label_smoothing` belongs to `robust`, see `RobustDPO`, to `exo_pair`, see `EXO`, and to
    `aot` and `aot_unpaired`, see `AOT`.

    Args:
        beta: > 0, reward units per nat.
        epsilon: probability of a wrong label, in [0, 1/2].
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "noisy labels"

    def __init__(self, beta: float = 0.1, epsilon: float = 0.1, **parts: Any) -> None:
        super().__init__(beta=beta, target=Smoothed(epsilon), **parts)
