"""References that follow the policy during training."""

import copy
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.objectives.base import Objective
from lit_pref.objectives.component import Component
from lit_pref.references.reference import InitialPolicy
from lit_pref.scoring.scorer import Scorer


class MovingReference(InitialPolicy):
    """A copy of the policy's initial weights that moves towards the policy every few optimizer steps (TR-DPO).

        theta_ref <- alpha theta + (1 - alpha) theta_ref        after the optimizer steps every, 2 every, 3 every, ...

    alpha = 1 replaces the reference by the policy (hard update), a smaller alpha mixes their weights (soft update); a
    small alpha with `every: 1` is an exponential moving average of the policy's weights; alpha = 0 is `InitialPolicy`.

    The copy has the policy's dtype and is sharded like the policy. Checkpoints contain its weights, so a resumed run
    has the same reference, and a checkpoint is evaluated against the reference of its step. Its scores change and are
    never stored. Below fp32, a move of less than half the spacing of the weights is rounded away.

    **Source**: TR-DPO, arXiv 2404.09656 (soft and hard updates), with the update, its order of operations and the
    defaults of TRL's `sync_ref_model`, which combines both.

    Args:
        alpha: the policy's share in the new weights, in [0, 1].
        every: optimizer steps between two updates, >= 1.

    Raises:
        UsageError: alpha or every is out of range.

    >>> MovingReference(alpha=1.0, every=64).describe()
    'a reference moved by alpha 1.0 every 64 optimizer steps, at first the policy as it is before its first step'
    """

    label = "moving reference"

    def __init__(self, alpha: float = 0.6, every: int = 512) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and 0 <= alpha <= 1):
            raise UsageError(f"MovingReference: alpha is the policy's share of the weights, in [0, 1], got {alpha}")
        if every < 1:
            raise UsageError(f"MovingReference: every counts optimizer steps between updates, >= 1, got {every}")
        self.alpha, self.every = alpha, every

    @property
    def rule(self) -> str:
        """The rule of the updates, in words."""
        return f"alpha {self.alpha}"

    def frozen_spec(self, policy: ModelSpec) -> None:
        self._model = policy

    def fingerprint(self) -> str:
        # The rule of its updates belongs to it: a run that resumes with another one has another reference.
        return f"{super().fingerprint()} {self.rule} every {self.every}"

    def describe(self) -> str:
        return f"a reference moved by {self.rule} every {self.every} optimizer steps, at first {super().describe()}"

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        super().attach(policy, scorer, tokenizer)
        self._policy_scorer = scorer

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the policy if an update is due.

        Args:
            step: the number of optimizer steps that the policy has taken.
        """
        if step % self.every:
            return
        for module in self._ready().modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # torch 2.6 keeps gathered copies of the root's weights after a forward pass
        self._move(step)

    def _move(self, step: int) -> None:
        for own, policy in zip(self._ready().parameters(), self._policy_scorer.parameters(), strict=True):
            own.mul_(1 - self.alpha).add_(policy, alpha=self.alpha)

    def state(self) -> dict[str, Any]:
        """Return the whole weights on the CPU of the first rank, for a checkpoint; every rank must call it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: get_model_state_dict(copied, options=options) for name, copied in self._saved().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the weights of a checkpoint; every rank calls it with the whole weights."""
        for name, copied in self._saved().items():
            set_model_state_dict(copied, dict(state[name]), options=StateDictOptions(full_state_dict=True))

    def _saved(self) -> dict[str, Scorer]:
        """The copies that a checkpoint contains, by name."""
        return {"reference": self._ready()}

    @property
    def copies(self) -> list[Scorer]:
        """All its copies of the policy."""
        return list(self._saved().values())


class BEMAReference(MovingReference):
    """A bias-corrected exponential moving average of the policy's weights (BEMA).

        theta_ref <- average + (lag + t)^-bias_power (theta - theta_0)        after every `every`-th optimizer step t
        average   <- (1 - b) average + b theta,  b = (lag + t)^-ema_power     before that; at first theta_0

    theta_0 are the policy's initial weights. The correction removes a share of the average's lag, which shrinks with
    t: bias_power = 0 adds the whole move away from theta_0. Everything else is as for `MovingReference`, with three
    copies of the policy in memory, two of them in checkpoints.

    **Source**: BEMA, arXiv 2508.00180, as in TRL's experimental `BEMACallback` with `update_ref_model`, and its
    defaults; its burn-in, its multiplier of t and its least b are left out.

    Args:
        every: optimizer steps between two updates, >= 1.
        ema_power: how fast the policy's share b in the average shrinks, >= 0; 0 makes the average the policy.
        bias_power: how fast the correction shrinks, >= 0.
        lag: virtual steps before the first one, >= 0.

    Raises:
        UsageError: an argument is out of range.

    >>> BEMAReference(every=100).rule
    'BEMA with ema_power 0.5, bias_power 0.2 and lag 10'
    """

    def __init__(self, every: int = 400, ema_power: float = 0.5, bias_power: float = 0.2, lag: int = 10) -> None:
        super().__init__(every=every)
        for name, value in (("ema_power", ema_power), ("bias_power", bias_power), ("lag", lag)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"BEMAReference: {name} must be finite and >= 0, got {value}")
        self.ema_power, self.bias_power, self.lag = ema_power, bias_power, lag

    @property
    def rule(self) -> str:
        return f"BEMA with ema_power {self.ema_power}, bias_power {self.bias_power} and lag {self.lag}"

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        super().attach(policy, scorer, tokenizer)
        self._start, self._average = copy.deepcopy(self._ready()), copy.deepcopy(self._ready())

    def _move(self, step: int) -> None:
        models = (self._ready(), self._average, self._start, self._policy_scorer)
        share, correction = (self.lag + step) ** -self.ema_power, (self.lag + step) ** -self.bias_power
        for own, average, start, policy in zip(*(model.parameters() for model in models), strict=True):
            average.mul_(1 - share).add_(policy, alpha=share)
            own.copy_(average + correction * (policy - start))

    def _saved(self) -> dict[str, Scorer]:
        return {**super()._saved(), "average": self._average}

    @property
    def copies(self) -> list[Scorer]:
        return [*super().copies, self._start]


def drift_objections(objective: Objective, moving: Collection[int]) -> Iterator[str]:
    """Objections to parts of an objective whose first reference must not move, if it is one of those that do."""
    for part in objective.modules():
        if isinstance(part, Component) and part.fixed_first_reference and 0 in moving:
            yield f"{type(part).__name__} with a moving reference 0: {part.fixed_first_reference}"


def drift_warnings(objective: Objective, moving: Collection[int]) -> Iterator[str]:
    """Warnings about parts of an objective that expect references which do not move, if some do."""
    for part in objective.modules():
        if isinstance(part, Component) and part.still_reference and moving:
            yield f"{type(part).__name__} with a moving reference: {part.still_reference}"
