"""Selection of training pairs: each pair gets a score, and those with the highest or lowest scores are kept."""

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_pref.errors import UsageError, UserError

Array = NDArray[Any]
AUTHORS_SHARE = 0.4
"""The default share of kept pairs, from the authors of the alignment potential."""


class Logps(NamedTuple):
    """Log-probs of both responses of P pairs by one model."""

    sums: Array  # (P, 2), chosen and rejected, nats
    lengths: Array  # (P, 2), tokens

    @property
    def means(self) -> Array:
        """Mean log-probs, (P, 2), nats per token."""
        return self.sums / self.lengths


@dataclass(frozen=True)
class Pool:
    """P candidate pairs, with their numbers before training.

    Args:
        ids: unique ids of the pairs.
        prompts: (P,) ids of the prompts.
        places: (P,) file and line.
        columns: (P,) numbers by name: `margin`, and `margin_column` of the selection; NaN if a value is missing.
        lengths: (P, 2) tokens of the chosen and the rejected response; 0 for the rejected one in one-sided data.
        policy: log-probs of the policy before its first step.
        reference: log-probs of the reference.
    """

    ids: Sequence[str]
    prompts: Array
    places: Array
    columns: Mapping[str, Array]
    lengths: Array
    policy: Logps | None = None
    reference: Logps | None = None


@dataclass(frozen=True)
class Choice:
    """The result of a selection.

    Args:
        scores: (P,) scores of all pairs.
        indices: (k,) indices of the kept pairs, increasing.
        tied: number of pairs left out although their score equals that of the last kept one.
    """

    scores: Array
    indices: NDArray[np.int64]
    tied: int


class Selection(ABC):
    """Scores the training pairs and keeps those with the highest or the lowest scores.

    Of N pairs (with `per_prompt`: of the N pairs of each prompt) floor(keep * N) are kept, as in the code of the
    alignment potential, and at least one. Pairs with equal scores are ordered by the sha256 of their ids: this order is
    random, and independent of the order of the files.

    Args:
        keep: a share, in (0, 1]; without `count` and `threshold` it is 0.4.
        count: a number of pairs; give at most one of `keep`, `count` and `threshold`.
        threshold: a score; pairs with exactly this score are kept.
        which: keep the highest scores or the lowest.
        per_prompt: keep this share or number of the pairs of every prompt.

    Raises:
        UsageError: an argument is out of range, or more than one of `keep`, `count` and `threshold` is given.
    """

    margin_column: str | None = None
    """The column with the strength of the preferences; None if it is not needed."""
    reference: bool | str = False
    """False uses no reference, True the run's first one; a string is the folder or hub name of another one."""
    reads_policy: bool = False
    """Whether the policy's log-probs are needed."""
    unit: str = ""
    """The unit of the scores."""

    def __init__(
        self,
        keep: float | None = None,
        count: int | None = None,
        threshold: float | None = None,
        which: Literal["top", "bottom"] = "top",
        per_prompt: bool = False,
    ) -> None:
        amounts = {"keep": keep, "count": count, "threshold": threshold}
        given = [name for name, value in amounts.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"data.selection: {' and '.join(given)} both decide how many pairs are kept; give one")
        if keep is not None and not 0 < keep <= 1:
            raise UsageError(f"data.selection.keep is {keep:g}; it is a share, above 0 and at most 1")
        if count is not None and count < 1:
            raise UsageError(f"data.selection.count is {count}; it must be at least 1")
        if threshold is not None and (per_prompt or not math.isfinite(threshold)):
            why = "per_prompt counts pairs and threshold does not" if per_prompt else f"threshold is {threshold}"
            raise UsageError(f"data.selection: {why}; give a finite threshold alone, or keep or count")
        if which not in ("top", "bottom"):
            raise UsageError(f"data.selection.which is {which!r}; it must be top or bottom")
        self.keep = keep if given else AUTHORS_SHARE
        self.count, self.threshold = count, threshold
        self.which, self.per_prompt = which, per_prompt

    @abstractmethod
    def scores(self, pool: Pool) -> Array:
        """Return (P,) float64 scores, which may depend on the whole pool but not on its order."""

    def notes(self, pool: Pool) -> list[str]:
        """Return warnings about this selection, as sentences."""
        return []

    def choose(self, pool: Pool) -> Choice:
        """Return the kept pairs.

        Raises:
            UserError: a score is not finite, no pair is kept, or there are fewer pairs than `count`.
        """
        scores = np.asarray(self.scores(pool), np.float64)
        if scores.shape != (len(pool.ids),):
            raise ValueError(f"{type(self).__name__} gives scores of shape {scores.shape} for {len(pool.ids)} pairs")
        if not np.isfinite(scores).all():
            first = int(np.flatnonzero(~np.isfinite(scores))[0])
            larger = ", or give the policy a larger dtype" if self.reads_policy else ""
            raise UserError(
                f"{pool.places[first]}: the score of this pair by {type(self).__name__} is {scores[first]}; look at "
                f"its numbers{larger}"
            )
        order = scores if self.which == "bottom" else -scores
        kept, tied = self._above(order) if self.threshold is not None else self._first(order, pool)
        if not kept.any():
            raise UserError(
                f"data.selection keeps no pair: threshold is {self.threshold:g} and the scores range from "
                f"{scores.min():.4g} to {scores.max():.4g}; choose one between them"
            )
        return Choice(scores, np.flatnonzero(kept), tied)

    def _above(self, order: Array) -> tuple[Array, int]:
        assert self.threshold is not None
        return order <= (self.threshold if self.which == "bottom" else -self.threshold), 0

    def _first(self, order: Array, pool: Pool) -> tuple[Array, int]:
        pairs = len(order)
        if self.count is not None and self.count > pairs and not self.per_prompt:
            raise UserError(f"data.selection.count is {self.count}, but there are only {pairs} pairs; lower it")
        group = np.unique(pool.prompts.astype(str), return_inverse=True)[1] if self.per_prompt else np.zeros(pairs, int)
        sizes = np.bincount(group)
        quotas = np.array([self._quota(int(size)) for size in sizes])
        chance = np.argsort(np.argsort([hashlib.sha256(id.encode()).digest()[:16] for id in pool.ids]))
        placed = np.lexsort((chance, order, group))
        kept = np.zeros(pairs, bool)
        kept[placed] = np.arange(pairs) - (np.cumsum(sizes) - sizes)[group[placed]] < quotas[group[placed]]
        edges = np.full(len(sizes), -np.inf)
        np.maximum.at(edges, group[kept], order[kept])
        return kept, int((~kept & (order == edges[group])).sum())

    def _quota(self, pairs: int) -> int:
        if self.count is not None:
            return min(self.count, pairs)
        assert self.keep is not None
        return max(1, int(self.keep * pairs))

    def margins(self, pool: Pool) -> Array:
        """Return (P,) strengths of the preferences, in units of the data.

        Raises:
            UserError: a pair has no strength.
        """
        assert self.margin_column is not None
        margins = pool.columns[self.margin_column].astype(np.float64)
        if np.isnan(margins).any():
            first = int(np.flatnonzero(np.isnan(margins))[0])
            raise UserError(
                f"{pool.places[first]}: {type(self).__name__} needs the strength of every preference, and "
                f"{int(np.isnan(margins).sum())} of {len(margins)} pairs have no `{self.margin_column}`; add it, name "
                "another column (data.selection.margin_column), or use a selection that needs none, such as "
                "ImplicitMargin"
            )
        return margins

    def implicit_margins(self, pool: Pool) -> Array:
        """Return (P,) h_w - h_l of the policy before its first step; see `ImplicitMargin`."""
        assert pool.policy is not None
        if self.reference is False:
            values = pool.policy.means
        else:
            assert pool.reference is not None
            values = pool.policy.sums - pool.reference.sums
        return values[:, 0] - values[:, 1]

    @property
    def implicit_unit(self) -> str:
        """The unit of `implicit_margins`."""
        return "nats per token" if self.reference is False else "nats"

    def __repr__(self) -> str:
        names = [*inspect.signature(type(self)).parameters, *inspect.signature(Selection).parameters]
        values = {name: getattr(self, name, None) for name in dict.fromkeys(names)}
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({shown})"
