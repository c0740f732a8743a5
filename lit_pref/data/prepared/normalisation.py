"""Normalisation of margins: constants fitted on the training pairs and stored in the checkpoint."""

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

    A pair counts in both orders, with m and with -m, so the mean of margins is 0 and nothing is subtracted:

        zscore    m / sqrt(mean m^2)
        minmax    m / max m
        quantile  P(M < m) + P(M = m) / 2 at the training pairs' margins M, 0 at m = 0, linear in between

    Subtracting the mean of oriented margins, as an ordinary z-score does, would make every second pair prefer its
    rejected response.

    Args:
        scale: divisor of m, in units of the data.
        margins: increasing margins of training pairs for `quantile`, else empty.
        shares: the quantile of each of these margins, in [0, 1].

    >>> Normaliser.fit("zscore", np.array([3.0, 4.0]), "pairs.jsonl").apply(np.array([5.0])).round(3).tolist()
    [1.414]
    """

    scale: float = 1.0
    margins: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    @classmethod
    def fit(cls, how: Normalise, margins: NDArray[np.float64], source: str) -> "Normaliser":
        """Return the normaliser fitted to these training margins, all >= 0.

        Raises:
            UserError: there are no margins, or all are 0.
        """
        if how == "none":
            return cls()
        if not len(margins) or np.isnan(margins).any() or not margins.max() > 0:
            raise UserError(
                f"{source}: the margins are to be normalised ({how}), but no training pair of this source has one "
                "above 0; set the mapping's margin.normalise to none."
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
        """Return the normalised margins."""
        if not self.margins:
            return margins / self.scale
        return np.sign(margins) * np.interp(np.abs(margins), self.margins, self.shares)


def constants_for(source: str, fitted: Mapping[str, Normaliser]) -> Normaliser:
    """Return the normaliser of a source: that of the training source of this name, or of the only one.

    Raises:
        UserError: no training source has this name, and their normalisers differ.
    """
    if source in fitted:
        return fitted[source]
    if len(set(map(repr, fitted.values()))) == 1:
        return next(iter(fitted.values()))
    raise UserError(
        f"data.val: the margins of {source!r} are to be normalised like those of a training source, but none has "
        f"this name; give it the `name` of one of {', '.join(fitted)}."
    )
