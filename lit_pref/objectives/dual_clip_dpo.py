"""DPO with a bound on the reward of each response."""

import math
from typing import Any

import torch
from torch import Tensor

from lit_pref.errors import UsageError
from lit_pref.objectives.numbers import positive
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.score import Score


class DualClip(Score):
    """phi(h_w) = min(h_w, upper), phi(h_l) = max(h_l, -lower): no gradient beyond the bounds, nor at them.

    Logs `clipped_chosen` and `clipped_rejected`, 1 for a clipped response.

    Args:
        upper: bound of the chosen response's log-ratio, > 0 or inf, nats.
        lower: bound of the rejected response's log-ratio, with the sign turned, > 0 or inf, nats.
    """

    reverse_kl = True
    symmetric = False

    def __init__(self, upper: float = math.inf, lower: float = math.inf) -> None:
        super().__init__()
        if not (upper > 0 and lower > 0):
            raise UsageError(f"DualClip: upper and lower must be positive, got {upper} and {lower}.")
        self.upper, self.lower = upper, lower

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        return (
            torch.where(chosen >= self.upper, self.upper, chosen),
            torch.where(rejected <= -self.lower, -self.lower, rejected),
        )

    def log(self, ratios: Sides) -> dict[str, Tensor]:
        chosen, rejected = ratios
        clipped = {"clipped_chosen": chosen >= self.upper, "clipped_rejected": rejected <= -self.lower}
        return {name: value.to(chosen.dtype) for name, value in clipped.items()}


class DualClipDPO(Pairwise):
    """DPO that stops at a bound on each side: pairs are not pushed on by ever lower probabilities of the rejected one.

        L = -log sigmoid(min(R_w, c_w) - max(R_l, -c_l)),    R_y = beta h_y

    Beyond its bound a response has no gradient; a pair with both responses beyond them has none at all: watch
    `clipped_chosen` and `clipped_rejected`. Infinite bounds give DPO. Experimental.

    >>> DualClipDPO(beta=0.5, c_w=2.0, c_l=4.0).score
    DualClip(upper=4.0, lower=8.0)

    **When**: under DPO the rejected responses' rewards fall without end. Not together with targets other than 1,
    which the asymmetric score rules out; `CDPO` and `IPO` bound the difference instead.

    **Source**: a reconstruction of the "dual clip reward loss" that Self-Training with Scaled Preference Optimization
    (TSO, arXiv 2409.02118) names in its abstract; its formula and code are not public, and this one is ours.

    Args:
        beta: > 0, reward units per nat.
        c_w: bound of the chosen response's reward, > 0 or inf, reward units.
        c_l: bound of the rejected response's reward, with the sign turned, > 0 or inf, reward units.
        parts: the other parts of `Pairwise`. A varying beta_i moves the bounds of the reward by beta_i / beta.
    """

    faithfulness = "reconstruction"
    family = "links"

    def __init__(self, beta: float = 0.1, c_w: float = 5.0, c_l: float = 5.0, **parts: Any) -> None:
        nats = 1 / positive(beta, "DualClipDPO: beta")
        if not (c_w > 0 and c_l > 0):
            raise UsageError(f"DualClipDPO: c_w and c_l must be positive, got {c_w} and {c_l}.")
        super().__init__(beta=beta, score=DualClip(nats * c_w, nats * c_l), **parts)
