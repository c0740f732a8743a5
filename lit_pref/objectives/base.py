"""Base class of every objective: scores in, unreduced losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.component import Component
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores, SequenceScores, TokenRewards

Faithfulness = Literal["code", "derived", "reconstruction"]
"""How a method was checked: against the authors' code, derived from the equations, or reconstructed."""

Family = Literal[
    "basic",
    "margins",
    "noisy labels",
    "links",
    "references and temperature",
    "reference-free",
    "tokens and lengths",
    "prompts",
    "several rewards",
    "single responses and batches",
    "exploration",
    "reward models",
    "lists",
]
"""What a method changes; the list of objectives is grouped by it."""

ONE_REFERENCE = Requirements(min_references=1, max_references=1)


class Objective(Component, ABC):
    """A loss for each pair, from the scores of the policy and of K references.

    Subclasses implement `forward` and, unless they need exactly one reference and nothing else, define `requirements`,
    which include the number of references; a class attribute is enough. Keep state in float64 buffers: they move with
    the device but are never cast. Sums collected between two calls of `update` must be plain tensor attributes, filled
    only when `self.training` and only from `pairs.is_real` pairs: DDP overwrites buffers from rank 0 at every forward.

    Shapes:
        every score, loss, reward and logged value: (B,)
    """

    faithfulness: Faithfulness
    """See `Faithfulness`."""

    family: Family
    """See `Family`."""

    rewards_only: bool = False
    """It fits the scores of reward models; a policy is refused. A requirement of `TokenRewards` implies it."""

    batch_coupled: bool = False
    """The loss of a pair depends on the other pairs of its micro-batch."""

    @property
    def requirements(self) -> Requirements:
        """The requirements on the run: one reference, unless a subclass overrides this."""
        return ONE_REFERENCE

    @abstractmethod
    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        """Return the unreduced losses of the B pairs; the mean over pairs is taken elsewhere."""

    def update(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the state; called once after every optimizer step on every rank.

        Args:
            all_reduce: returns the sum of a tensor over all ranks. Every rank must call it equally often.
        """

    @property
    def progress(self) -> dict[str, float]:
        """The state, for the log."""
        return {}

    def log_prob_parts(self) -> list[str]:
        """Return the names of the classes that need log-probs of tokens, which a reward model does not give."""
        asked = self.requirements
        reads = self.log_probs_only or asked.statistics - {TokenRewards()} or asked.reference_statistics
        return [type(self).__name__] if reads else []

    def reward_objectives(self) -> list[str]:
        """Return the names of the objectives that are for reward models only: those it contains, or its own."""
        within = [module for module in self.modules() if isinstance(module, Objective) and module is not self]
        found = list(dict.fromkeys(name for objective in within for name in objective.reward_objectives()))
        is_one = self.rewards_only or TokenRewards() in self.requirements.statistics
        return found or ([type(self).__name__] if is_one else [])

    def check_inputs(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> None:
        """Refuse inputs that would broadcast silently into a wrong loss; call it first in `forward`.

        Raises:
            ValueError: a wrong number of references, a missing side, or a score that is not (B,).
        """
        asked = self.requirements
        lowest, highest = asked.min_references, asked.max_references
        if len(references) < lowest or (highest is not None and len(references) > highest):
            raise ValueError(f"{type(self).__name__} takes {lowest} to {highest} references, got {len(references)}")
        for origin, pair in [("policy", policy), *((f"reference {k}", scores) for k, scores in enumerate(references))]:
            for side in asked.sides:
                response: SequenceScores | None = getattr(pair, side)
                if response is None:
                    which = side.replace("_response", "")
                    raise ValueError(f"{type(self).__name__} reads the {which} responses, the {origin} has none")
                for name, value in (("scores", response.scores), ("lengths", response.lengths)):
                    if value.shape != (len(pairs),):
                        raise ValueError(
                            f"{name} of the {origin} ({side}) must be (B,) = ({len(pairs)},), got {tuple(value.shape)}"
                        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Objective":
        # bf16-true casts every buffer, and a temperature in bf16 could not change by small steps: keep the values, take
        # only the device.
        before = [(module, name, value) for module in self.modules() for name, value in module._buffers.items()]
        super()._apply(fn, recurse)
        for module, name, value in before:
            moved = module._buffers[name]
            if value is not None and moved is not None:
                module._buffers[name] = value.to(moved.device)
        return self
