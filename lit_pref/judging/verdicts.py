"""Reads the verdicts of a judge strictly, and measures how much they depend on the order of two responses."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_CHOICE = re.compile(r"\[\[([ABC])\]\]")
_GRADE = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
_PREFERENCE = {"A": 1.0, "B": 0.0, "C": 0.5}


def choice_of(text: str) -> float | None:
    """Return the preference for response A: 1 for [[A]], 0 for [[B]], 1/2 for [[C]]; None if it is unreadable.

    It is unreadable unless exactly one of the three occurs, once or several times. The thoughts that some models write
    before </think> are no verdict.

    >>> choice_of("Both are fine. [[C]]"), choice_of("[[A]], no, [[B]]"), choice_of("A"), choice_of("[[a]]")
    (0.5, None, None, None)
    """
    found = set(_CHOICE.findall(_verdict(text)))
    return _PREFERENCE[found.pop()] if len(found) == 1 else None


def grade_of(text: str) -> float | None:
    """Return the grade in a verdict, or None if it is unreadable: not exactly one number from 1 to 10 in [[ ]].

    >>> grade_of("Good. [[7.5]]"), grade_of("<think>[[3]]</think>[[4]]"), grade_of("[[11]]"), grade_of("8/10")
    (7.5, 4.0, None, None)
    """
    found = {float(number) for number in _GRADE.findall(_verdict(text))}
    grade = found.pop() if len(found) == 1 else math.nan
    return grade if 1 <= grade <= 10 else None


def _verdict(text: str) -> str:
    after = text.rpartition("</think>")[2]
    return "" if "<think>" in after else after


@dataclass(frozen=True)
class BothOrders:
    """The preference for a response in both orders, in [0, 1]: when it was shown first, and when it was shown second.

    None stands for an unreadable verdict.
    """

    when_first: float | None
    when_second: float | None

    @property
    def preference(self) -> float:
        """The mean of both orders; NaN if one of them is unreadable."""
        if self.when_first is None or self.when_second is None:
            return math.nan
        return (self.when_first + self.when_second) / 2


@dataclass(frozen=True)
class PositionBias:
    """How many pairs have two readable verdicts, and in how many of them these differ, by the favoured place.

    `ties` is the number of pairs that are a tie in both orders.
    """

    pairs: int
    first: int
    second: int
    ties: int

    @property
    def share(self) -> float:
        """The share of pairs whose two orders disagree."""
        return (self.first + self.second) / self.pairs if self.pairs else math.nan

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.pairs:
            return "No pair has readable verdicts in both orders."
        return (
            f"The two orders disagree on {self.first + self.second} of {self.pairs} pairs ({100 * self.share:.3g} %): "
            f"{self.first} favour the answer that is shown first, {self.second} the one that is shown second; "
            f"{self.ties} pairs are a tie in both orders."
        )


def position_bias(every: Iterable[BothOrders]) -> PositionBias:
    """Count the pairs whose verdicts depend on the order.

    >>> position_bias([BothOrders(1, 0), BothOrders(0.5, 0.5), BothOrders(1, 1), BothOrders(1, None)])
    PositionBias(pairs=3, first=1, second=0, ties=1)
    """
    known = [(one.when_first, one.when_second) for one in every]
    both = [(first, second) for first, second in known if first is not None and second is not None]
    return PositionBias(
        len(both),
        sum(first > second for first, second in both),
        sum(first < second for first, second in both),
        sum(first == second == 0.5 for first, second in both),
    )
