"""A temperature that follows how far the pairs of a batch are apart."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.device_data import without_waiting
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.temperature import Temperature, TemperatureOutput
from lit_pref.scores import PairScores


class BatchAdaptive(Temperature):
    """One beta for the pairs of a micro-batch, larger if they are further apart than those of past ones (beta-DPO).

        beta_i = max(floor, beta (1 + alpha (A - M))),    A = mean gap of the kept pairs, gap_i = h_w - h_l, nats
        M <- momentum M + (1 - momentum) mean gap,          S <- the same of the gaps' standard deviation

    M and S start at 0, are updated after each optimizer step with the pairs of all ranks, and are checkpointed in
    float64. In the equation of beta they already contain the micro-batch's own pairs: with one micro-batch a step, they
    are the updated ones. The share 1 - `filtered` of the pairs is kept, drawn without replacement with the weights
    exp(-(gap_i - M)^2 / (2 S^2)); fillers are not drawn. Draws depend on the pair's id and the step only. beta grows
    without bound with the gap: watch `beta`. Validation uses the objective's beta, so that its losses do not
    depend on batches.

    Logged with `filtered` > 0: `kept`, 1 or 0, and 1 in validation. The other pairs are left out of A and of the loss,
    which is the mean over those that are kept.

    **Source**: beta-DPO, arXiv 2407.08639, and junkangwu/beta-DPO. There A, M and S are of the pairs of all ranks in a
    micro-batch and move with every micro-batch, those of validation included; one pair has no deviation (NaN), and at
    equal scores of policy and reference S = 0 divides 0 by 0, where every pair has the same weight here; M and S are
    not in its checkpoint.

    Args:
        alpha: finite, >= 0, per nat; 0 keeps beta constant.
        momentum: share of the past in M and S, in [0, 1).
        filtered: share of the pairs of a micro-batch that is left out, in [0, 1); at least one is kept.
        floor: beta never goes below this, > 0; at most the objective's beta.

    Raises:
        UsageError: an argument is out of range.
    """

    batch_coupled = True
    still_reference = (
        "its moving mean and deviation are those of gaps to the reference, which jump when the reference moves: watch "
        "train/beta, or choose `temperature: Constant`."
    )

    def __init__(self, alpha: float = 0.6, momentum: float = 0.9, filtered: float = 0.0, floor: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise UsageError(f"BatchAdaptive: alpha must be finite and >= 0, got {alpha}.")
        for name, share in (("momentum", momentum), ("filtered", filtered)):
            if not 0 <= share < 1:
                raise UsageError(f"BatchAdaptive: {name} is a share and must be in [0, 1), got {share}.")
        if not 0 < floor < math.inf:
            raise UsageError(f"BatchAdaptive: floor is the smallest beta and must be positive, got {floor}.")
        self.alpha, self.momentum, self.filtered = alpha, momentum, filtered
        self.floor = self.minimum = floor
        self.mean: Tensor
        self.deviation: Tensor
        self.steps: Tensor
        for name in ("mean", "deviation", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self._known: tuple[Tensor, int, int] | None = None  # `steps`, its version, and its value
        self._window: Tensor | None = None  # number, sum and sum of squares of the gaps of the optimizer step

    def forward(
        self, beta: float, ratios: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> TemperatureOutput:
        constant = torch.full_like(ratios[0], beta)
        gaps = (ratios[0] - ratios[1]).double()
        own = gaps[pairs.real].sort().values  # sorted, so that the order of the pairs changes no bit
        if not self.training or not len(own):
            return self._output(constant, pairs.is_real)
        sums = torch.stack([torch.full_like(self.mean, len(own)), own.sum(), own.square().sum()])
        self._window = sums if self._window is None else self._window + sums
        mean, deviation = self._moved(sums)
        drawn = self._draw(gaps, mean, deviation, pairs)
        level = gaps[drawn].sort().values.mean()
        adapted = (beta * (1 + self.alpha * (level - mean))).clamp_min(self.floor)
        kept = torch.zeros_like(pairs.is_real).index_fill(0, drawn, True) if self.filtered else pairs.is_real
        return self._output(adapted.to(constant).expand_as(constant), kept)

    def _output(self, beta: Tensor, kept: Tensor) -> TemperatureOutput:
        """Return beta with the kept pairs, which the log shows and training reads."""
        if not self.filtered:
            return TemperatureOutput(beta, {})
        return TemperatureOutput(beta, {"kept": kept.to(beta)}, kept if self.training else None)

    def _moved(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return M and S after a batch with these sums of gaps."""
        count, total, squares = sums.unbind()
        variance = (squares - total**2 / count).clamp_min(0) / (count - 1).clamp_min(1)
        share = 1 - self.momentum
        return torch.lerp(self.mean, total / count, share), torch.lerp(self.deviation, variance.sqrt(), share)

    def _draw(self, gaps: Tensor, mean: Tensor, deviation: Tensor, pairs: PairData) -> Tensor:
        """Return the indices of the pairs that are kept: those with the largest log-weight plus Gumbel noise."""
        if not self.filtered:
            return pairs.real
        step = self._step()
        uniform = torch.tensor([_uniform(f"{name} {step}") for name in pairs.ids], dtype=gaps.dtype)
        noise = without_waiting(uniform, gaps.device).log().neg().log().neg()
        weights = -0.5 * ((gaps - mean) / torch.where(deviation > 0, deviation, torch.inf)) ** 2  # logarithms
        priority = torch.where(pairs.is_real, weights + noise, -torch.inf)
        return priority.topk(max(1, round((1 - self.filtered) * len(pairs.real)))).indices

    def _step(self) -> int:
        """The number of steps so far, read from the device only if it was changed elsewhere."""
        if self._known is None or self._known[0] is not self.steps or self._known[1] != self.steps._version:
            self._known = self.steps, self.steps._version, int(self.steps)
        return self._known[2]

    def update(self, beta: float, all_reduce: Callable[[Tensor], Tensor]) -> None:
        window = torch.zeros(3, dtype=torch.float64, device=self.mean.device) if self._window is None else self._window
        counted = self._step() + 1 if self.filtered and self._window is not None else None
        self._window = None
        sums = all_reduce(window)
        mean, deviation = self._moved(sums)
        self.mean.copy_(torch.where(sums[0] > 0, mean, self.mean))
        self.deviation.copy_(torch.where(sums[0] > 0, deviation, self.deviation))
        self.steps.add_(sums[0] > 0)
        if counted is not None:  # this rank had a real pair, so the step counts
            self._known = self.steps, self.steps._version, counted

    def progress(self, beta: float) -> dict[str, float]:
        return {"gap_mean": float(self.mean), "gap_deviation": float(self.deviation)}


def _uniform(text: str) -> float:
    """A number in (0, 1) that a text determines."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") // 2**12 + 0.5) / 2**52
