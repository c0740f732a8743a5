"""Margins of different scales on one: constants fitted on the training pairs, stored in the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_pref.errors import UserError

Normalise = Literal["none", "zscore", "minmax", "quantile"]
POINTS = 1001


@dataclass(frozen=True)
class Normaliser:
    """An odd, increasing map of margins: a tie stays 0 and no pair changes sides.

    A pair counts in both orders, with m and with -m, so the mean of margins is 0 and nothing is to be subtracted:

        zscore    m / sqrt(mean m^2)
        minmax    m / max m
        quantile  P(M < m) + P(M = m) / 2 at the training pairs' margins M, 0 at m = 0, straight lines between

    Subtracting the mean of oriented margins, as z-scores of one list do, would tell every second pair to prefer its
    rejected response.

    Args:
        scale: m is divided by it; in units of the data.
        margins: increasing margins of training pairs where `quantile` is wanted, else empty.
        shares: the quantile of each of them, in [0, 1].

    >>> Normaliser.fit("zscore", np.array([3.0, 4.0]), "pairs.jsonl").apply(np.array([5.0])).round(3).tolist()
    [1.414]
    """

    scale: float = 1.0
    margins: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    @classmethod
    def fit(cls, how: Normalise, margins: NDArray[np.float64], source: str) -> "Normaliser":
        """The map for these training margins, all >= 0.

        Raises:
            UserError: there are none, or all are 0.
        """
        if how == "none":
            return cls()
        if not len(margins) or np.isnan(margins).any() or not margins.max() > 0:
            raise UserError(
                f"{source}: the margins are to be normalised ({how}), and no training pair of it has one above 0; "
                "set the mapping's margin.normalise to none."
            )
        if how != "quantile":
            return cls(float(np.sqrt(np.mean(margins**2)) if how == "zscore" else margins.max()))
        values, counts = np.unique(margins, return_counts=True)
        shares = (np.cumsum(counts) - counts / 2) / len(margins)
        if len(values) > POINTS:
            taken = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
            values, shares = values[taken], shares[taken]
        return cls(1.0, [0.0, *values[values > 0].tolist()], [0.0, *shares[values > 0].tolist()])

    def apply(self, margins: NDArray[Any]) -> NDArray[Any]:
        """The normalised margins."""
        if not self.margins:
            return margins / self.scale
        return np.sign(margins) * np.interp(np.abs(margins), self.margins, self.shares)


def constants_for(source: str, fitted: Mapping[str, Normaliser]) -> Normaliser:
    """Those of a source: fitted on the training source of this name, or on the only one.

    Raises:
        UserError: none has this name, and they differ.
    """
    if source in fitted:
        return fitted[source]
    if len(set(map(repr, fitted.values()))) == 1:
        return next(iter(fitted.values()))
    raise UserError(
        f"data.val: the margins of {source!r} are to be normalised as those of a training source, and none has this "
        f"name; give it the `name` of one of {', '.join(fitted)}."
    )
