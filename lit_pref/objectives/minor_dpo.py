"""DPO that pushes rejected responses only down to the reference."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.score import OneSided


class MinorDPO(Pairwise):
    """MinorDPO: a rejected response is pushed down only as long as it is likelier than under the reference.

        L = -log sigmoid(beta (h_w - max(0, h_l))),    h_y = log pi(y | x) - log pi_ref(y | x)

    Where h_l > 0 it is DPO; where h_l < 0 only the chosen response has a gradient, and the loss falls to 0 only if h_w
    grows. At h_l = 0, where a policy that starts as its reference is, the gradient is DPO's. Chosen and rejected are
    treated differently, so only `target: Hard` is valid. The reward of a rejected response is beta max(0, h_l).

    >>> MinorDPO(beta=0.2).score
    OneSided()

    **When**: DPO makes both responses unlikely, or fails at a higher learning rate. Not if rejected responses, such as
    harmful ones, should become less likely than under the reference.

    **Source**: MinorDPO, arXiv 2408.09834. No official code is known. The value of the gradient at 0 is a choice: with
    0 the first step would not see the rejected responses.

    Args:
        beta: > 0, reward units per nat.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "references and temperature"

    def __init__(self, beta: float = 0.1, **parts: Any) -> None:
        super().__init__(beta=beta, score=OneSided(), **parts)
