"""Strength of a preference: the margin computed from scores, a signed number, a probability or a label."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lit_pref.data.formats.several import Columns, Label, Values, Verdict, Verdicts, mean
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import LARGEST

Transform = Literal["diff", "log_ratio", "signed", "rank_gap", "probability", "votes", "const"]
OF_SCORES = ("diff", "log_ratio", "rank_gap")
Side = Literal["chosen", "rejected", "a", "b"]


@dataclass(frozen=True)
class Margin:
    """Computes the margin from the strength: a transform, times `scale`, cut to [-`clip`, `clip`].

    With w the chosen and l the rejected text: `diff` is score_w - score_l; `log_ratio` is log(score_w / score_l);
    `signed` is a column whose sign says which text is better; `rank_gap` is rank_l - rank_w, where smaller ranks are
    better; `probability` is log(p / (1 - p)) of p = P(w is better); `votes` is the share of w's votes less that of l's;
    `const` is 1 (0 for a tie).

    Args:
        transform: see above; None follows from the strength: `diff`, `signed`, or no margin if there is a probability.
        scale: factor of the margin.
        clip: largest absolute value of the margin, after scaling.
        normalise: how all margins are normalised together, fitted on the training split.
    """

    transform: Transform | None = None
    scale: float = 1.0
    clip: float | None = None
    normalise: Literal["none", "zscore", "minmax", "quantile"] = "none"

    def of_scores(self, row: Row, names: tuple[str, str], w: float, l: float, ascending: bool) -> float:  # noqa: E741
        """Return the raw margin of two scores, before `finished`."""
        if self.transform == "log_ratio":
            for name, score in zip(names, (w, l), strict=True):
                if score <= 0:
                    raise BadRow(
                        row,
                        name,
                        "is not above 0",
                        "give a score with a logarithm, or set the mapping's margin.transform to diff",
                        f" ({score:g})",
                    )
            return math.log(w) - math.log(l)
        gap = l - w if self.transform == "rank_gap" or ascending else w - l
        return _sign(gap) if self.transform == "const" else gap

    def of_probability(self, row: Row, name: str, p: float) -> float:
        """Return the log-odds of p; infinite for a certain p if they will be cut to `clip`."""
        if 0 < p < 1:
            return math.log(p) - math.log1p(-p)
        if self.clip is None:
            raise BadRow(
                row,
                name,
                "is certain, and its log-odds are infinite",
                "set the mapping's margin.clip, to which they are cut",
            )
        return math.copysign(math.inf, p - 0.5)

    def finished(self, row: Row, name: str, value: float) -> tuple[float, bool]:
        """Return the margin scaled and cut to `clip`, and whether it was cut."""
        value *= self.scale
        if self.clip is not None and abs(value) > self.clip:
            return math.copysign(self.clip, value), True
        if not abs(value) <= LARGEST:
            raise BadRow(
                row,
                name,
                "gives a margin that is not finite in single precision",
                "set the mapping's margin.clip or scale",
            )
        return value, False


@dataclass(frozen=True)
class Score:
    """Names the columns of scores: of `chosen` and `rejected`, of `a` and `b`, or of a list at `path`.

    `order: asc` means that the smaller score is the better one (ranks, penalties). `range` holds the smallest and the
    largest value of a score. Of several columns, or a list, the mean is taken.
    """

    chosen: Columns | None = None
    rejected: Columns | None = None
    a: Columns | None = None
    b: Columns | None = None
    path: str | None = None
    order: Literal["asc", "desc"] | None = None
    range: list[float] | None = None


@dataclass(frozen=True)
class Signed:
    """Names a column whose sign says which text is better, or with `positive_means: label` a size without a sign.

    `range` holds its smallest and largest value. Of several columns, or a list, the mean is taken.
    """

    column: Columns
    positive_means: Literal["chosen", "rejected", "a", "b", "label"]
    range: list[float] | None = None


@dataclass(frozen=True)
class Probability:
    """Names a column with the probability that the text `of` is the better one, as a number within `range`.

    Of several columns, or a list, the mean is taken.
    """

    column: Columns
    of: Side | None = None
    range: list[float] = field(default_factory=lambda: [0.0, 1.0])


@dataclass
class PairStrengthValue:
    """The strength of one pair; `prefers` is the side that its label prefers."""

    margin: float | None = None
    clipped: bool = False
    probability: float | None = None
    prefers: Verdict | None = None
    scores: tuple[float, float] | None = None


class PairStrength:
    """Reads the strength of the pair in a row; margin and probability are those of the first text, `chosen` or `a`.

    It is for mappings only: of a row that is canonical already, `RowReader` takes the margin or computes it.
    """

    def __init__(
        self,
        margin: Margin,
        score: Score | None,
        signed: Signed | None,
        probability: Probability | None,
        label: Label | None,
    ) -> None:
        self.margin, self.signed, self.probability, self.label = margin, signed, probability, label
        self.range = score.range if score else None
        self.ascending = score is not None and score.order == "asc"
        self.scores = None
        if score is not None:
            first, second = score.chosen or score.a, score.rejected or score.b
            self.scores = (Values(first or []), Values(second or []))
        self._signed = signed and Values(signed.column)
        self._probability = probability and Values(probability.column)
        self._label = label and Verdicts(label)

    def of(self, row: Row) -> PairStrengthValue:
        """Return the strength of a row.

        Raises:
            BadRow: a value is missing or cannot be used.
        """
        strength = PairStrengthValue()
        if self._label:
            strength.prefers, strength.probability = self._label.of(row)
        if self._probability:
            strength.probability = self._p(row, self._probability)
        name, value = self._raw(row, strength)
        if value is not None:
            strength.margin, strength.clipped = self.margin.finished(row, name, value)
        elif self.label and self.label.tie != [] and strength.probability is None:
            strength.probability = {"chosen": 1.0, "rejected": 0.0, "tie": 0.5}[str(strength.prefers)]
        return strength

    def _raw(self, row: Row, strength: PairStrengthValue) -> tuple[str, float | None]:
        if self.scores:
            names = (self.scores[0].text, self.scores[1].text)
            numbers = [values.numbers(row) for values in self.scores]
            for name, score in (*numbers[0], *numbers[1]):
                refuse_outside(row, name, score, self.range)
            strength.scores = w, l = mean(numbers[0]), mean(numbers[1])  # noqa: E741
            return names[0], self.margin.of_scores(row, names, w, l, self.ascending)
        if self.signed and self._signed:
            value = self._signed_value(row, self.signed, self._signed, strength)
            return self._signed.text, _sign(value) if self.margin.transform == "const" else value
        if self.margin.transform == "probability" and strength.probability is not None:
            name = self._probability.text if self._probability else self._label.text if self._label else ""
            return name, self.margin.of_probability(row, name, strength.probability)
        if self.margin.transform == "votes" and strength.probability is not None and self._label:
            return self._label.text, 2 * strength.probability - 1
        if self.margin.transform == "const":
            if strength.prefers is None and strength.probability is not None:
                return "margin", _sign(strength.probability - 0.5)
            return "margin", {"rejected": -1.0, "tie": 0.0}.get(strength.prefers or "", 1.0)
        return "", None

    def _signed_value(self, row: Row, signed: Signed, values: Values, strength: PairStrengthValue) -> float:
        numbers = values.numbers(row)
        for name, part in numbers:
            refuse_outside(row, name, part, signed.range)
        value = mean(numbers)
        if signed.positive_means != "label":
            return value if signed.positive_means in ("chosen", "a") else -value
        if value < 0:
            raise BadRow(
                row, values.text, "is negative", "the label says who wins, give the size alone", f" ({value:g})"
            )
        return {"chosen": value, "rejected": -value}.get(str(strength.prefers), 0.0)

    def _p(self, row: Row, values: Values) -> float:
        assert self.probability is not None
        low, high = self.probability.range
        numbers = values.numbers(row)
        p = (mean(numbers) - low) / (high - low)
        for name, value in numbers:
            if low <= value <= high:
                continue
            remedy = "fix it, or give its smallest and largest value as the mapping's probability.range"
            if value in (0, -1) and value < low:  # as in older files of AlpacaEval
                remedy = "outside the range this usually stands for a tie or a missing judgement, so write "
                remedy += f"{(low + high) / 2:g} for a tie"
            raise BadRow(
                row,
                name,
                f"is not between {low:g} and {high:g}",
                remedy,
                f" ({value:g})",
            )
        return p if self.probability.of in (None, "chosen", "a") else 1 - p


def refuse_outside(row: Row, name: str, value: float, limits: list[float] | None) -> None:
    """Refuse a value outside the range that the mapping gives, such as -100 for a missing one.

    Raises:
        BadRow: the value is outside.
    """
    if limits is not None and not limits[0] <= value <= limits[1]:
        raise BadRow(
            row,
            name,
            f"is below {limits[0]:g}"
            if limits[1] == float("inf")
            else f"is not between {limits[0]:g} and {limits[1]:g}",
            "fix it, or give its smallest and largest value as the mapping's `range` beside the column",
            f" ({value:g})",
        )


def _sign(value: float) -> float:
    return float((value > 0) - (value < 0))
