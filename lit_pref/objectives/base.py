"""What every objective is: scores in, unreduced losses out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lit_pref.batch import PairData
from lit_pref.pairs import Strengths, TokenFunction
from lit_pref.scores import Need, ObjectiveOutput, PairScores, SequenceScores

Faithfulness = Literal["code", "derived", "reconstruction"]
"""How far a method is checked: against the authors' code, derived from the paper's equations, or reconstructed."""


def constructor_values(module: nn.Module) -> dict[str, Any]:
    """The constructor arguments of `module` that it keeps as attributes of the same name, in order."""
    return {name: getattr(module, name) for name in inspect.signature(type(module)).parameters if hasattr(module, name)}


def call_text(module: nn.Module, values: dict[str, Any]) -> str:
    """`ClassName(name=value, ...)`."""
    return f"{type(module).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


class Objective(nn.Module, ABC):
    """A loss for each pair, from the scores of the policy and of K references.

    Subclasses write `forward` and, where the defaults are wrong, say what they need. A subclass may replace any of the
    properties below by a plain class attribute. State belongs in float64 buffers: they follow the device, never a dtype
    cast. Sums gathered between two calls of `update` must be plain tensor attributes, filled only when `self.training`
    and only from `pairs.is_real` pairs: DDP overwrites buffers from rank 0 at every forward.

    Shapes:
        every score, loss, reward and logged value: (B,)
    """

    sides: tuple[str, ...] = ("chosen", "rejected")
    """Which responses are read: both, or `("chosen",)`, and then `rejected` may be absent everywhere, or both and
    `"extra_response"`, and then every row of the data must have one."""

    faithfulness: Faithfulness
    """See `Faithfulness`."""

    @property
    def min_references(self) -> int:
        """The least number of references, K."""
        return 1

    @property
    def max_references(self) -> int | None:
        """The largest number of references, K; None is any number."""
        return 1

    @property
    def needs(self) -> frozenset[Need]:
        """Statistics asked of the policy; they arrive in `SequenceScores.statistics`."""
        return frozenset()

    @property
    def reference_needs(self) -> frozenset[Need]:
        """Statistics asked of every reference; never `Tilt` or `Kl`, which compare the policy with a reference."""
        return frozenset()

    @property
    def required(self) -> frozenset[str]:
        """Data that it cannot do without: `margin`, `probability`, or names of columns."""
        return frozenset()

    @property
    def token_functions(self) -> Mapping[str, TokenFunction]:
        """Token columns that are made of a pair's ids: name -> a function known by its import path."""
        return {}

    @property
    def token_columns(self) -> frozenset[str]:
        """Token columns that it reads from the data."""
        return frozenset()

    @property
    def fit_inputs(self) -> frozenset[str]:
        """What `fit` looks at: `margin`, `probability`, `responses`, names of columns; nothing where none is fitted."""
        return frozenset()

    @abstractmethod
    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        """The unreduced losses of the B pairs; the mean over pairs is taken elsewhere."""

    def fit(self, strengths: Strengths) -> list[str]:
        """Fit what is left open to the training pairs; called once before the first step, alike on every rank.

        What is fitted is state: a checkpoint that is loaded later stands over it.

        Returns:
            Lines for the log.
        """
        return []

    def update(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the state; called once after every optimiser step on every rank.

        Args:
            all_reduce: returns the sum of a tensor over all ranks. Every rank must call it equally often.
        """

    @property
    def progress(self) -> dict[str, float]:
        """The state, for the log."""
        return {}

    def check_inputs(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> None:
        """Refuse what would broadcast into a wrong loss without a word; call it first in `forward`.

        Raises:
            ValueError: a wrong number of references, a missing side, or a score that is not (B,).
        """
        lowest, highest = self.min_references, self.max_references
        if len(references) < lowest or (highest is not None and len(references) > highest):
            raise ValueError(f"{type(self).__name__} takes {lowest} to {highest} references, got {len(references)}")
        for origin, pair in [("policy", policy), *((f"reference {k}", scores) for k, scores in enumerate(references))]:
            for side in self.sides:
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
        # bf16-true casts every buffer, and a bf16 temperature never moves again: keep the values, take only the device.
        before = [(module, name, value) for module in self.modules() for name, value in module._buffers.items()]
        super()._apply(fn, recurse)
        for module, name, value in before:
            moved = module._buffers[name]
            if value is not None and moved is not None:
                module._buffers[name] = value.to(moved.device)
        return self

    def __repr__(self) -> str:
        return call_text(self, constructor_values(self))
