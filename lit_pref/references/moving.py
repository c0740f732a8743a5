"""A reference that follows the policy during training."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.objectives.base import Objective
from lit_pref.objectives.component import Component
from lit_pref.references.reference import InitialPolicy
from lit_pref.run_context import RunContext


class MovingReference(InitialPolicy):
    """A copy of the policy's initial weights that moves towards the policy every few optimizer steps (TR-DPO).

        theta_ref <- alpha theta + (1 - alpha) theta_ref        after the optimizer steps every, 2 every, 3 every, ...

    alpha = 1 replaces the reference by the policy (hard update), a smaller alpha mixes their weights (soft update), and
    a small alpha with `every: 1` is an exponential moving average of the policy's weights. alpha = 0 is `InitialPolicy`.

    The copy has the policy's dtype and is sharded like the policy. Each checkpoint contains its weights, so a resumed
    run has the same reference, and one that is evaluated from a checkpoint is compared with the reference of that
    step. Its scores change and are never stored. Below fp32, a move that is smaller than half the spacing of the
    weights is rounded away, as with a small alpha.

    **Source**: TR-DPO, arXiv 2404.09656 (soft and hard updates), with the update, its order of operations and the
    defaults of TRL's `sync_ref_model`, which combines both.

    Args:
        alpha: the policy's share in the new weights, in [0, 1].
        every: optimizer steps between two updates, >= 1.

    Raises:
        UsageError: alpha or every is out of range.

    >>> MovingReference(alpha=1.0, every=64).describe()
    'a moving reference, alpha 1.0 every 64 optimizer steps from the policy as it is before its first step'
    """

    label = "moving reference"

    def __init__(self, alpha: float = 0.6, every: int = 512) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and 0 <= alpha <= 1):
            raise UsageError(f"MovingReference: alpha is the policy's share of the weights, in [0, 1], got {alpha}")
        if every < 1:
            raise UsageError(f"MovingReference: every counts optimizer steps between updates, >= 1, got {every}")
        self.alpha, self.every = alpha, every

    def frozen_spec(self, policy: ModelSpec) -> None:
        self._model = policy

    def fingerprint(self) -> str:
        # The rule of its updates belongs to it: a run that resumes with another one has another reference.
        return f"{super().fingerprint()} alpha {self.alpha} every {self.every}"

    def describe(self) -> str:
        return f"a moving reference, alpha {self.alpha} every {self.every} optimizer steps from {super().describe()}"

    def place(self, run: RunContext) -> None:
        """Round the weights and shard them as the run does with the policy's; called once, after `attach`."""
        self.scorer = run.convert(self._ready())  # type: ignore[assignment]
        if run.shard is not None:
            run.shard(self._ready())

    def to(self, device: torch.device | str) -> None:
        """Move the weights, which already have the policy's dtype."""
        self._ready().to(device)

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
                module.reshard()  # after a forward pass the root's parameters are gathered copies
        for own, policy in zip(self._ready().parameters(), self._policy_scorer.parameters(), strict=True):
            own.mul_(1 - self.alpha).add_(policy, alpha=self.alpha)

    def state(self) -> dict[str, Any]:
        """Return the whole weights on the CPU of the first rank, for a checkpoint; every rank must call it."""
        return get_model_state_dict(self._ready(), options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the weights of a checkpoint; every rank calls it with the whole weights."""
        set_model_state_dict(self._ready(), dict(state), options=StateDictOptions(full_state_dict=True))


def drift_warnings(objective: Objective) -> Iterator[str]:
    """Warnings about parts of an objective that themselves hold the policy near its reference, while that one moves."""
    for part in objective.modules():
        if isinstance(part, Component) and part.still_reference:
            yield f"{type(part).__name__} with a moving reference: {part.still_reference}"
