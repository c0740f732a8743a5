"""phi: the reward as a function of the log-ratio."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part, Sides


class Score(Part):
    """phi(h_w), phi(h_l) of the log-ratios h = log pi - log pi~."""

    reverse_kl: bool = False
    """The divergence between the policy and its reference is the reverse KL, as in DPO."""

    symmetric: bool = True
    """The same function is applied to chosen and rejected, so that swapping them turns x into -x."""

    identity: bool = False
    """The score is the log-ratio itself."""

    needs_ratio: bool = True
    """Is meaningful only for a ratio to a reference."""

    means_only: str = ""
    """Works only for mean log-probs (`TokenSum.plain_mean`) without a reference."""

    @abstractmethod
    def forward(self, ratios: Sides) -> Sides:
        """Return the scores of both responses, each (B,)."""

    def log(self, ratios: Sides) -> dict[str, Tensor]:
        """Return values to log, each (B,)."""
        return {}


class Identity(Score):
    """phi(h) = h: the reverse KL divergence (DPO)."""

    reverse_kl = True
    identity = True
    needs_ratio = False

    def forward(self, ratios: Sides) -> Sides:
        return ratios


class ForwardKL(Score):
    """phi(h) = 1 - exp(-h): the forward KL divergence.

    The exponent is bounded by half of the largest one that the dtype can represent (44 in fp32); beyond it phi is
    constant.

    **Source**: f-DPO, arXiv 2309.16240, phi = f'(u) at u = exp(h), here with the constant that makes phi(0) = 0.
    """

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        return -bounded_expm1(-chosen), -bounded_expm1(-rejected)


class JensenShannon(Score):
    """phi(h) = log 2 + log sigmoid(h): the Jensen-Shannon divergence. **Source**: f-DPO, arXiv 2309.16240."""

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        return math.log(2) + F.logsigmoid(chosen), math.log(2) + F.logsigmoid(rejected)


class AlphaDivergence(Score):
    """phi(h) = (1 - exp(-alpha h)) / alpha: from the reverse KL (alpha -> 0) to the forward KL (alpha = 1).

    **Source**: f-DPO, arXiv 2309.16240. TRL's `f_alpha_divergence_coef` is 1 - alpha.

    Args:
        alpha: in (0, 1].
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise UsageError(f"AlphaDivergence: alpha must be in (0, 1], got {alpha}; its limit 0 is `Identity`.")
        self.alpha = alpha

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        return (
            -bounded_expm1(-self.alpha * chosen) / self.alpha,
            -bounded_expm1(-self.alpha * rejected) / self.alpha,
        )


class OneSided(Score):
    """phi(h_w) = h_w, phi(h_l) = max(0, h_l): rejected responses are pushed only down to the reference (MinorDPO).

    At h_l = 0 the gradient of the rejected side is taken as 1, the one-sided derivative from above. With 0 a policy
    that starts as its reference would not see its rejected responses at all in the first step.

    **Source**: MinorDPO, arXiv 2408.09834; no official code is known, and the paper does not specify the value at 0.
    """

    reverse_kl = True
    symmetric = False

    def forward(self, ratios: Sides) -> Sides:
        chosen, rejected = ratios
        # Not `clamp`, whose gradient at its bound depends on the version of torch.
        return chosen, torch.where(rejected < 0, 0, rejected)


def bounded_expm1(exponent: Tensor) -> Tensor:
    """Return exp(exponent) - 1, with the exponent bounded so that differences of two results stay finite.

    At the bound the gradient is that from below.
    """
    bound = math.log(torch.finfo(exponent.dtype).max) / 2
    return torch.expm1(torch.where(exponent > bound, bound, exponent))
