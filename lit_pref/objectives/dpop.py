"""DPO that does not let the chosen response fall."""

import math
from typing import Any

import torch

from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.score import Score


class DropPenalty(Score):
    """phi(h_w) = h_w - penalty max(0, -h_w), phi(h_l) = h_l: a chosen response below its reference counts more (DPOP).

    At h_w = 0 the gradient is 1, that from above.

    Args:
        penalty: lambda, finite and >= 0.
    """

    reverse_kl = True
    symmetric = False

    def __init__(self, penalty: float = 50.0) -> None:
        super().__init__()
        if not 0 <= penalty < math.inf:
            raise UsageError(f"DropPenalty: penalty must be finite and >= 0, got {penalty}.")
        self.penalty = penalty

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        return chosen * torch.where(chosen < 0, 1 + self.penalty, 1.0), rejected


class DPOP(Pairwise):
    """DPO-Positive: DPO with a penalty where the chosen response is less likely than under the reference.

        L = -log sigmoid(beta (h_w - h_l - lambda max(0, -h_w))),    h_y = log pi(y | x) - log pi_ref(y | x)

    DPO can lower both responses as long as the rejected one falls faster; here a nat by which the chosen one falls
    below the reference costs 1 + lambda nats of the gap. lambda = 0 is DPO. The loss grows linearly, (1 + lambda) beta
    for each nat of h_w below 0: watch `chosen_change` and clip gradients. Chosen and rejected are treated differently,
    so only `target: Hard` is valid. Rewards contain the penalty.

    >>> DPOP(penalty=5.0).score
    DropPenalty(penalty=5.0)

    **When**: the two responses differ in a few tokens only, as in mathematics, and DPO makes the chosen one unlikely
    (`chosen_fell`). Not if the chosen responses are merely the better of two bad ones.

    **Source**: Smaug, arXiv 2402.13228. No official code is known; PaddleNLP's loss type `dpop` has this form, with
    lambda 50. Other code adds the penalty outside the sigmoid. At h_w = 0 the gradient is a choice: here DPO's.

    Args:
        beta: > 0, reward units per nat.
        penalty: lambda, finite and >= 0.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "references and temperature"

    def __init__(self, beta: float = 0.1, penalty: float = 50.0, **parts: Any) -> None:
        super().__init__(beta=beta, score=DropPenalty(penalty), **parts)
