"""Combination of K reference scores into one."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pref.device_data import without_waiting
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.requirements import Requirements

MixOutput = tuple[Sides, dict[str, Tensor]]
"""The mixed reference scores, and values to log, each (B,)."""


class ReferenceMix(Part):
    """Combines K reference scores into log pi~, to which the policy's score is compared.

    The mixed score may lack a constant of the pair: only the difference of the two responses enters a loss of pairs. It
    takes one or more references, unless its `requirements` say otherwise.
    """

    @property
    def requirements(self) -> Requirements:
        return Requirements(min_references=1)

    @abstractmethod
    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        """Combine K pairs of scores, each (B,), without gradient; `policy` gives shape and dtype if K = 0."""


class Single(ReferenceMix):
    """The only reference, unchanged: log pi~ = r_0."""

    requirements = Requirements(min_references=1, max_references=1)

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        return references[0], {}


class NoReference(ReferenceMix):
    """No reference: log pi~ = 0, so that the log-ratio is the policy's own score. Use it for reward models."""

    requirements = Requirements(max_references=0)

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        return (torch.zeros_like(policy[0]), torch.zeros_like(policy[1])), {}


class AnchoredMix(ReferenceMix):
    """A mixture of K weighted references, clipped around the first one, the anchor; `Harmonic` has the equations.

    Args:
        eta: width of the interval relative to the anchor's score, >= 0; with 0 only the anchor counts.
        adaptive: divide eta between the two responses by the size of their scores; false gives each the full eta.
        weights: K relative weights >= 0, or None for ARWC.
    """

    still_reference = (
        "its clipping and weights hold the policy near the anchor, and a reference that follows the policy changes "
        "both: compare with InitialPolicy or Pretrained, or choose `reference: Geometric`."
    )

    def __init__(self, eta: float = 0.1, adaptive: bool = True, weights: list[float] | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if not (math.isfinite(eta) and eta >= 0):
            raise UsageError(f"{name}: eta is the relative width of the interval and must be >= 0, got {eta}.")
        if weights is not None:
            relative(weights, name)
        self.eta, self.adaptive, self.weights = eta, adaptive, weights

    @property
    def requirements(self) -> Requirements:
        return Requirements(1) if self.weights is None else Requirements(len(self.weights), len(self.weights))

    def clip(self, scores: Tensor) -> Tensor:
        """Return the scores of all references, (K, 2, B), clipped to the interval around those of the first one."""
        anchor, others = scores[:1], scores[1:]
        window = torch.full_like(anchor, self.eta)
        if self.adaptive:
            size = scores.mean(0, keepdim=True).abs()  # (1, 2, B)
            window = self.eta * size / size.sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        radius = window * anchor.abs()
        return torch.cat([anchor, others.clamp(anchor - radius, anchor + radius)])

    def weigh(self, scores: Tensor) -> Tensor:
        """Return the weights of the references, which sum to 1: (K, B), or (K, 1) if they are fixed."""
        if self.weights is not None:
            return _like(scores, relative(self.weights, type(self).__name__)).unsqueeze(1)
        decisiveness = (scores[:, 0] - scores[:, 1]).abs()  # (K, B)
        smallest = 1e-6
        return (decisiveness + smallest / len(scores)) / (decisiveness.sum(0) + smallest)


class Harmonic(AnchoredMix):
    """The weighted harmonic mean of K references, clipped around the first one, the anchor (MRPO).

        log pi~_y = -logsumexp_k(log a_k - r^_k,y)
        r^_k,y    = clip(r_k,y, r_0,y - eps_y |r_0,y|, r_0,y + eps_y |r_0,y|)        for k >= 1; r^_0 = r_0     (CTRO)
        eps_y     = eta |b_y| / (|b_w| + |b_l|),  b_y = mean_k r_k,y                 adaptive;  eta otherwise
        a_k       = (c_k + d/K) / (sum_j c_j + d),  c_k = |r_k,w - r_k,l|, d = 1e-6                              (ARWC)

    Weights and clipping bounds are computed from the unclipped scores. One reference gives `Single` exactly. On whole
    responses the mean is close to the smallest r^_k, so that the weights matter only where references differ by a few
    nats: watch `reference_weights/k` (softmax_k(log a_k - r^_k), averaged over both responses) and `clipped` (the share
    of the other references' scores that are clipped).

    **Source**: MRPO, arXiv 2405.16388; CTRO and ARWC from the authors' `trainer_mref.py`, written there for K = 2 and
    derived here for any K. Their code gives the more decisive reference the smaller weight in the harmonic sum, against
    their derivation: `arwc_swap` reproduces that. Likewise their fixed alpha, named after the other reference, weighs
    the anchor: it is `weights: [alpha, 1 - alpha]` here. They add d to the denominator only; here the weights sum to
    one, which differs by less than 1e-6 / sum c.

    Args:
        eta: width of the interval relative to the anchor's score, >= 0; with 0 only the anchor counts.
        adaptive: divide eta between the two responses by the size of their scores; false gives each the full eta.
        weights: K relative weights >= 0, or None for ARWC.
        arwc_swap: exchange the two ARWC weights, as the official code does; two references at most.
    """

    sums_only = (
        "Harmonic clips to an interval relative to the summed log-prob, which has no meaning for another aggregation: "
        "choose `tokens: Sum`, or `reference: Geometric`."
    )

    def __init__(
        self, eta: float = 0.1, adaptive: bool = True, weights: list[float] | None = None, arwc_swap: bool = False
    ) -> None:
        super().__init__(eta, adaptive, weights)
        if weights is not None and arwc_swap:
            raise UsageError(
                "Harmonic: arwc_swap exchanges the adaptive weights, and `weights` fixes them: "
                "leave arwc_swap out and write the weights in the order you want."
            )
        self.arwc_swap = arwc_swap

    @property
    def requirements(self) -> Requirements:
        return super().requirements | Requirements(max_references=2 if self.arwc_swap else None)

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        scores = torch.stack([torch.stack(sides) for sides in references])  # (K, 2, B)
        clipped = self.clip(scores)
        joint = self.weigh(scores).log().unsqueeze(1) - clipped  # (K, 2, B)
        chosen, rejected = -joint.logsumexp(0)
        effective = joint.softmax(0).mean(1)  # (K, B)
        return (chosen, rejected), _mix_log(effective, scores, clipped)

    def weigh(self, scores: Tensor) -> Tensor:
        weights = super().weigh(scores)
        return weights.flip(0) if self.arwc_swap else weights


class ClippedGeometric(AnchoredMix):
    """The weighted geometric mean of K references that are clipped around the first one: log pi~_y = sum_k a_k r^_k,y.

    Clip and weights are those of `Harmonic`, which is close to the smallest r^_k on whole responses, so that the least
    favourable reference decides; here all of them count by their weights. Logged: `reference_weights/k` and `clipped`.
    One reference gives `Single` exactly. Without clip and adaptive weights it is `Geometric`.

    **Source**: own combination of the exact solution (see `Geometric`) with CTRO and ARWC of MRPO, arXiv 2405.16388.

    Args:
        eta: width of the interval relative to the anchor's score, >= 0; with 0 only the anchor counts.
        adaptive: divide eta between the two responses by the size of their scores; false gives each the full eta.
        weights: K relative weights >= 0, or None for ARWC.
    """

    sums_only = (
        "ClippedGeometric clips to an interval relative to the summed log-prob, which has no meaning for another "
        "aggregation: choose `tokens: Sum`, or `reference: Geometric`."
    )

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        scores = torch.stack([torch.stack(sides) for sides in references])  # (K, 2, B)
        clipped, weights = self.clip(scores), self.weigh(scores)
        chosen, rejected = (weights.unsqueeze(1) * clipped).sum(0)
        return (chosen, rejected), _mix_log(weights.expand_as(scores[:, 0]), scores, clipped)


class ImplicitRewards(ReferenceMix):
    """The first reference, tilted by the implicit rewards of K - 1 others: log pi~ = r_0 + sum_k c_k (r_k - r_0).

    r_k - r_0 is the reward, in units of its own beta, that a policy k which was trained from reference 0 has learned.
    The logit of the preference is then beta (h_w - h_l) - beta sum_k c_k [(r_k - r_0)_w - (r_k - r_0)_l], with h
    relative to the first reference: the pair's preference is explained by what the others do not reward already. c_k >
    0 keeps the k-th reward, c_k < 0 unlearns it. If the first weight, 1 - sum_k c_k, is not negative, this is
    `Geometric` with the weights (1 - sum_k c_k, c_1, ...).

    **Source**: the implicit margin rewards of MODPO, arXiv 2310.03708, written as a reference.

    Args:
        weights: c_k of references 1, 2, ..., finite. If policy k was trained with another beta than this objective's,
            c_k is its weight times its beta, divided by this one's.
    """

    fixed_first_reference = (
        "r_k - r_0 is the reward that policy k has learned only if reference 0 is the model from which k was trained: "
        "make reference 0 `InitialPolicy` or `Pretrained`, or choose `reference: Geometric`."
    )

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        if not weights or not all(map(math.isfinite, weights)):
            raise UsageError(
                "ImplicitRewards: weights are finite numbers, one for each reference after the first, got "
                f"{weights}; without other references choose `reference: Single`."
            )
        self.weights = weights

    @property
    def requirements(self) -> Requirements:
        return Requirements(1 + len(self.weights), 1 + len(self.weights))

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        (chosen, rejected), others = references[0], references[1:]
        tilt = [(c * (w - chosen), c * (r - rejected)) for c, (w, r) in zip(self.weights, others, strict=True)]
        return (chosen + sum(w for w, _ in tilt), rejected + sum(r for _, r in tilt)), {}


def _mix_log(weights: Tensor, scores: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    share = (clipped != scores).sum((0, 1)) / max(1, 2 * (len(scores) - 1))
    logged = {f"reference_weights/{k}": weight for k, weight in enumerate(weights)}
    return {**logged, "clipped": share.to(scores.dtype)}


class Geometric(ReferenceMix):
    """The weighted geometric mean of K references: log pi~_y = sum_k a_k r_k,y.

    It is the exact solution of the objective with a weighted sum of K divergences, whereas `Harmonic` bounds that
    objective's value: the policy that maximises E[R] - beta sum_k a_k KL(pi || pi_k) is proportional to prod_k pi_k^a_k
    exp(R / beta). Weights are relative to their sum; logged as `reference_weights/k`.

    Args:
        weights: K relative weights >= 0, or None for equal ones.
    """

    def __init__(self, weights: list[float] | None = None) -> None:
        super().__init__()
        if weights is not None:
            relative(weights, "Geometric")
        self.weights = weights

    @property
    def requirements(self) -> Requirements:
        return Requirements(1) if self.weights is None else Requirements(len(self.weights), len(self.weights))

    def forward(self, references: Sequence[Sides], policy: Sides) -> MixOutput:
        scores = torch.stack([torch.stack(sides) for sides in references])  # (K, 2, B)
        weights = _like(scores, relative(self.weights or [1.0] * len(references), "Geometric"))
        chosen, rejected = torch.einsum("k,ksb->sb", weights, scores)
        logged = {f"reference_weights/{k}": weight.expand_as(chosen) for k, weight in enumerate(weights)}
        return (chosen, rejected), logged


def _like(scores: Tensor, numbers: list[float]) -> Tensor:
    return without_waiting(torch.tensor(numbers, dtype=scores.dtype), scores.device)


def relative(weights: list[float], owner: str) -> list[float]:
    """Return `weights` divided by their sum.

    Raises:
        UsageError: a weight is negative or not finite, or all are zero.
    """
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise UsageError(
            f"{owner}: weights must be finite, not negative and not all zero, one for each reference, got {weights}."
        )
    return [weight / total for weight in weights]
