"""Temperatures: how beta depends on the pair."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import Need, PairScores, Tilt, TiltSlope


class TemperatureOutput(NamedTuple):
    """beta_i (B,), values to log, each (B,), and which pairs enter the loss, (B,); None for all of them."""

    beta: Tensor
    logged: dict[str, Tensor]
    kept: Tensor | None = None


class Temperature(Part):
    """Computes the beta of every pair from the objective's `beta`."""

    constant: bool = False
    """beta is the same for every pair."""

    batch_coupled: bool = False
    """The beta of a pair depends on the other pairs of its micro-batch."""

    reverse_kl_only: str = ""
    """Works only if the divergence is the reverse KL (`Score.reverse_kl`)."""

    minimum: float | None = None
    """The smallest beta that the objective may have; None is no bound."""

    maximum: float | None = None
    """The largest beta that the objective may have; None is no bound."""

    @abstractmethod
    def forward(
        self, beta: float, ratios: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> TemperatureOutput:
        """Return beta_i of every pair, values to log, and which pairs enter the loss; called without gradient.

        Args:
            beta: the objective's beta.
            ratios: the log-ratios h_w and h_l to the mixed reference, each (B,).
            policy: the policy's scores, with the required statistics.
            references: the K references, unmixed.
            pairs: the B pairs.
        """

    def update(self, beta: float, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the state; called once after every optimizer step on every rank."""

    def progress(self, beta: float) -> dict[str, float]:
        """The state, for the log."""
        return {}


class Constant(Temperature):
    """beta_i = beta."""

    constant = True

    def forward(
        self, beta: float, ratios: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> TemperatureOutput:
        return TemperatureOutput(torch.full_like(ratios[0], beta), {})


class EpsilonStep(Temperature):
    """Moves each pair's beta a step up or down, depending on how a perturbed beta would rank the pair (epsilon-DPO).

        beta_i = beta / (1 + epsilon s_i),    s_i = +1 if z- > z > z+,  -1 if z- < z < z+,  0 otherwise
        beta  <- mean of beta_i over the pairs of the optimizer step, on all ranks

    z is the policy's log-prob of the chosen minus that of the rejected response; z- and z+ are the same under the
    policies that a smaller and a larger beta would have made, log softmax((1 + c) f - c g) at c = +epsilon and c =
    -epsilon, f and g being the logits of the policy and of the **first** reference. With several references the step
    still uses only the first one: a mixture of sequence scores has no next-token distribution. The differences z- -
    z and z+ - z are computed from f - g, so that s is right near the reference too.

    The moving beta is kept as `scale`, a float64 factor of the objective's beta. Validation uses it with the steps of
    its own pairs and leaves it unchanged.

    **Source**: epsilon-DPO, arXiv 2502.13177. The paper moves beta to the arithmetic mean of beta_i, the official code
    to beta / (1 + epsilon mean(s)), their harmonic mean (`harmonic`). The arithmetic one is larger by a factor of up to
    1 / (1 - epsilon^2) in every optimizer step, and this compounds: with as many steps up as down, 470 updates at
    epsilon = 0.05 multiply beta by up to 3.2 under the paper's rule and by 1 under the code's. The code also divides
    an incomplete last optimizer step by the full accumulation, and leaves beta out of the checkpoint; here sums and
    counts are gathered, and the scale is checkpointed.

    Args:
        epsilon: relative size of the step, in [0, 1).
        first_order: decide by the slope at epsilon = 0, s = sign(D - (KL_w - KL_l)) with D the difference of the
            log-ratios and KL_y the summed next-token KL(policy || reference), instead of by the two tilted policies.
        minimum: beta never goes below this.
        maximum: beta never goes above this. Beta drifts geometrically, so long runs may need both bounds.
        harmonic: move beta to the harmonic mean of beta_i, as the official code does, instead of the arithmetic mean
            of the paper.
    """

    log_probs_only = True
    sums_only = (
        "EpsilonStep compares sums of log-probs, not another aggregation: choose `tokens: Sum`, or "
        "`temperature: Constant`."
    )
    reverse_kl_only = (
        "EpsilonStep perturbs beta of the reverse KL, not of another divergence: choose `score: Identity`, or "
        "`temperature: Constant`."
    )
    still_reference = (
        "beta and the reference both follow the policy, and each changes what the other one is set by: watch "
        "train/beta, bound it by minimum and maximum, or choose `temperature: Constant`."
    )

    def __init__(
        self,
        epsilon: float = 0.01,
        first_order: bool = False,
        minimum: float | None = None,
        maximum: float | None = None,
        harmonic: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= epsilon < 1:
            raise UsageError(f"EpsilonStep: epsilon is a relative step and must be in [0, 1), got {epsilon}.")
        low, high = 0.0 if minimum is None else minimum, math.inf if maximum is None else maximum
        if not 0 <= low <= high:
            raise UsageError(f"EpsilonStep: 0 <= minimum <= maximum must hold, got {minimum} and {maximum}.")
        self.epsilon, self.first_order, self.harmonic = epsilon, first_order, harmonic
        self.minimum, self.maximum = minimum, maximum
        self.scale: Tensor
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        # The numbers of pairs with s = +1, with s = -1, and of all: integers, whose sum does not depend on order and
        # ranks.
        self._window: Tensor | None = None

    @property
    def requirements(self) -> Requirements:
        tilts = frozenset[Need]({Tilt(self.epsilon), Tilt(-self.epsilon)})
        return Requirements(min_references=1, statistics=frozenset[Need]({TiltSlope()}) if self.first_order else tilts)

    def forward(
        self, beta: float, ratios: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> TemperatureOutput:
        step = self._step(policy)
        if self.training:
            seen = torch.stack([(step > 0) & pairs.is_real, (step < 0) & pairs.is_real, pairs.is_real]).sum(1).double()
            self._window = seen if self._window is None else self._window + seen
        betas = beta * self.scale / (1 + self.epsilon * step)
        return TemperatureOutput(betas.to(ratios[0].dtype), {"epsilon_step": step.to(ratios[0].dtype)})

    def _step(self, policy: PairScores) -> Tensor:
        if self.first_order:
            return torch.sign(difference(policy, TiltSlope())).double()
        smaller_beta, larger_beta = difference(policy, Tilt(self.epsilon)), difference(policy, Tilt(-self.epsilon))
        up = (smaller_beta > 0) & (larger_beta < 0)
        down = (smaller_beta < 0) & (larger_beta > 0)
        return up.double() - down.double()

    def update(self, beta: float, all_reduce: Callable[[Tensor], Tensor]) -> None:
        window = torch.zeros(3, dtype=torch.float64, device=self.scale.device) if self._window is None else self._window
        up, down, pairs = all_reduce(window).unbind()  # computed on the device, because a number would be a wait
        self._window = None
        if self.harmonic:
            mean = 1 / (1 + self.epsilon * (up - down) / pairs)
        else:
            mean = (up / (1 + self.epsilon) + down / (1 - self.epsilon) + (pairs - up - down)) / pairs
        scale = self.scale * mean
        if self.minimum is not None:
            scale = scale.clamp_min(self.minimum / beta)
        if self.maximum is not None:
            scale = scale.clamp_max(self.maximum / beta)
        self.scale.copy_(torch.where(pairs > 0, scale, self.scale))

    def progress(self, beta: float) -> dict[str, float]:
        return {"beta": beta * float(self.scale)}


class ColumnTemperature(Temperature):
    """beta_i = beta c_i with a positive column c of the data, such as an annotator's confidence.

    A larger c_i makes the loss steeper and its optimum nearer to the reference: the pair's gap in nats is the target's
    log-odds divided by beta_i. Logged as `beta`.

    **Source**: own formulation.

    Args:
        column: name of the column, or `margin`; valid for either order of the texts (`data.on_swap: keep`).

    Raises:
        UserError: on `forward`, if a value is not positive and finite.
    """

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column

    @property
    def requirements(self) -> Requirements:
        return Requirements(columns=frozenset({self.column}))

    def forward(
        self, beta: float, ratios: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> TemperatureOutput:
        factors, here = (self.read(self.column, policy, data) for data in (pairs, pairs.host))
        wrong = ~((here > 0) & here.isfinite())
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise UserError(
                f"ColumnTemperature multiplies beta by `{self.column}`, which must be positive and finite, and "
                f"{pairs.names[first]} has {float(here[first])}: correct or drop the pair, or choose "
                "`temperature: Constant`."
            )
        return TemperatureOutput(beta * factors.to(ratios[0].dtype), {})


def difference(pair: PairScores, need: Need) -> Tensor:
    """Return the difference, chosen minus rejected, of the statistic `need`, (B,)."""
    assert pair.rejected is not None
    return pair.chosen.statistics[need] - pair.rejected.statistics[need]
