"""A factor of the loss of every pair."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class Weight(Part):
    """omega_i of every pair, (B,). It weighs the preference loss, not the terms."""

    differentiable: bool = False
    """The gradient passes through omega; otherwise omega is a constant of the step."""

    uniform: bool = False
    """omega is 1 for every pair, so that it is not logged."""

    @abstractmethod
    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        """Return omega_i, (B,), in the dtype of the scores."""


class NoWeight(Weight):
    """omega = 1."""

    uniform = True

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.ones_like(policy.chosen.scores)


class ConstantWeight(Weight):
    """omega = c for every pair: weighs the preference loss against the terms.

    Args:
        c: >= 0 and finite.
    """

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(c) and c >= 0):
            raise UsageError(f"ConstantWeight: c must be finite and >= 0, got {c}.")
        self.c = c

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.full_like(policy.chosen.scores, self.c)


class ColumnWeight(Weight):
    """omega from a column of the data, such as an annotator's confidence; not normalised.

    Args:
        column: name of the column, or `margin`.
    """

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column

    @property
    def requirements(self) -> Requirements:
        return Requirements(columns=frozenset({self.column}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return self.read(self.column, policy, pairs)
