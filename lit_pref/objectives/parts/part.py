"""What every part of a `Pairwise` objective is."""

from abc import ABC
from collections.abc import Mapping

from torch import Tensor, nn

from lit_pref.batch import PairData
from lit_pref.errors import UserError
from lit_pref.objectives.base import call_text, constructor_values
from lit_pref.pairs import Strengths, TokenFunction
from lit_pref.scores import Need, PairScores

Sides = tuple[Tensor, Tensor]
"""A value of the chosen and of the rejected response of every pair, each (B,)."""


class Part(nn.Module, ABC):
    """One decision of a `Pairwise` objective.

    A part keeps every constructor argument as an attribute of the same name, which is what its `repr` prints. It knows
    nothing of the other parts; what cannot be combined is refused by `Pairwise`.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Statistics asked of the policy."""
        return frozenset()

    @property
    def reference_needs(self) -> frozenset[Need]:
        """Statistics asked of every reference."""
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

    def fit(self, strengths: Strengths) -> list[str]:
        """Fit what is left open to the training pairs, before the first step; lines for the log."""
        return []

    def __repr__(self) -> str:
        return call_text(self, constructor_values(self))


class DataPart(Part):
    """A part that gives one value a pair, from the data or from the policy's scores: target, offset, weight."""

    def read(self, field: str, policy: PairScores, pairs: PairData) -> Tensor:
        """The `margin`, the `probability` or the column `field` of every pair, (B,), in the dtype of the scores.

        Raises:
            UserError: the batch does not have it.
        """
        known = {"margin": pairs.margin, "probability": pairs.probability}
        value = known[field] if field in known else pairs.columns.get(field)
        if value is None:
            raise UserError(
                f"{type(self).__name__} needs the field `{field}` of every pair, and this data has none: "
                f"name its source in the data mapping, or choose another part than {type(self).__name__}."
            )
        if value.shape != (len(pairs),):
            raise ValueError(f"`{field}` must be (B,) = ({len(pairs)},), got {tuple(value.shape)}")
        return value.to(policy.chosen.scores.dtype)
