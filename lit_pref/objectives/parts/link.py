"""The loss as a function of the logit."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part


class Link(Part):
    """The loss of a logit x_i whose sign is the model's preference, given the target p_i."""

    cross_entropy: bool = False
    """The loss is the cross-entropy of p against sigmoid(x), so that loss - entropy(p) is a KL divergence."""

    fits_target: bool = False
    """The loss has its minimum at sigmoid(x) = p."""

    constant_beta_only: str = ""
    """Works only if beta is the same for every pair (`Temperature.constant`)."""

    soft_targets_only: str = ""
    """Works only with targets between 0 and 1."""

    hard_targets_only: str = ""
    """Works only with the target 1 (`Target.hard`)."""

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor, beta: Tensor) -> Tensor:
        """Return the loss of every pair; all (B,)."""


class MarginLink(Link):
    """A link of the usual form p l(x) + (1 - p) l(-x); subclasses write l as `loss`."""

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor:
        """Return l(x), (B,)."""

    def forward(self, logits: Tensor, target: Tensor, beta: Tensor) -> Tensor:
        return target * self.loss(logits) + (1 - target) * self.loss(-logits)


class Logistic(MarginLink):
    """l(x) = -log sigmoid(x), nats; its minimum for a target p is at sigmoid(x) = p (DPO, Bradley-Terry)."""

    cross_entropy = True
    fits_target = True

    def loss(self, logits: Tensor) -> Tensor:
        return -F.logsigmoid(logits)


class Hinge(MarginLink):
    """l(x) = max(0, delta - x), with the gradient 0 at x = delta (SLiC in the form of DPO).

    Args:
        delta: > 0 and finite, units of the logit; pairs whose logit exceeds it have no loss.
    """

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(delta) and delta > 0):
            raise UsageError(f"Hinge: delta is the gap from which on the loss is 0 and must be > 0, got {delta}.")
        self.delta = delta

    def loss(self, logits: Tensor) -> Tensor:
        return torch.where(logits >= self.delta, 0, self.delta - logits)


class Squared(Link):
    """(x - (p - 1/2))^2 / beta^2: regress the difference of the log-ratios on (2p - 1) / (2 beta) nats (IPO).

    With p = 1 it is IPO, (h_w - h_l - 1 / (2 beta))^2. The form p l(x) + (1 - p) l(-x) of l(x) = (x - 1/2)^2 / beta^2
    is larger by the constant p (1 - p) / beta^2, with the same gradient.

    beta is the paper's tau and sets the gap, whereas in DPO it sets the slope. So a temperature that varies is refused.

    **Source**: IPO, arXiv 2310.12036, eq. 17, on summed log-probs. TRL and HALOs divide each log-ratio by its number of
    tokens first, which changes the meaning of beta: use `tokens: Mean` for their version.
    """

    constant_beta_only = (
        "Squared divides by beta squared, so that a beta that varies would weigh the pairs: "
        "choose `temperature: Constant`, or `link: Logistic`."
    )

    def forward(self, logits: Tensor, target: Tensor, beta: Tensor) -> Tensor:
        return ((logits - (target - 0.5)) / beta) ** 2


class ReverseKL(Link):
    """KL(q || p), q = sigmoid(x): q (log q - log p) + (1 - q) (log(1 - q) - log(1 - p)) (EXO).

    The logistic link is KL(p || q) plus a constant and is mass-covering; this one is mode-seeking. It is infinite at p
    = 1, so a `Hard` target is refused; if a large margin rounds p to 1, p is clamped at the resolution of the dtype.

    **Source**: EXO, arXiv 2402.00856, eq. 16 with K = 2, where p = 1 - 1e-3 (`Smoothed(0.001)`).
    """

    fits_target = True
    soft_targets_only = (
        "ReverseKL is infinite if the target is 1 and undefined above 1: "
        "choose `target: Smoothed` (EXO: epsilon 0.001) or `MarginTarget`, or `link: Logistic`."
    )

    def forward(self, logits: Tensor, target: Tensor, beta: Tensor) -> Tensor:
        smallest = torch.finfo(target.dtype).eps
        target = target.clamp(smallest, 1 - smallest)
        better, worse = F.logsigmoid(logits), F.logsigmoid(-logits)
        return better.exp() * (better - target.log()) + worse.exp() * (worse - torch.log1p(-target))
