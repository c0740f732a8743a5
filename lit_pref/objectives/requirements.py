"""The requirements of an objective or a part on the run: references, statistics, data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from lit_pref.errors import UsageError
from lit_pref.pairs import ExtraFunction, TokenFunction
from lit_pref.scores import COMPARING_NEEDS, Need

SIDES = ("chosen", "rejected", "extra_response")


@dataclass(frozen=True)
class Requirements:
    """The requirements of an objective or a part on the run; by default there are none.

    `a | b` combines the requirements of `a` and `b`. Names, statistics and sides are united. The number of references K
    must suit both, so the ranges intersect: the larger minimum and the smaller maximum. Two parts that cannot agree
    give a minimum above the maximum, which `Pairwise` refuses. `|` is associative and commutative, and `Requirements()`
    changes nothing among those that read both sides of a pair.

    >>> both = Requirements(1, None, columns=frozenset({"margin"})) | Requirements(0, 2, columns=frozenset({"trust"}))
    >>> both.min_references, both.max_references, sorted(both.columns)
    (1, 2, ['margin', 'trust'])

    Args:
        min_references: the smallest K.
        max_references: the largest K; None is any number.
        statistics: statistics of the policy; they arrive in `SequenceScores.statistics`.
        reference_statistics: statistics of every reference; never `Tilt`, `TiltSlope`, `Kl` or `ReferenceKl`,
            which compare the policy with a reference.
        columns: required data: `margin`, `probability`, or names of columns.
        token_columns: token columns of the data.
        token_functions: token columns computed from a pair's ids: name -> a function known by its import path.
        sides: the responses it reads: both; or `("chosen",)`, and then `rejected` may be absent everywhere; or both and
            `"extra_response"`, and then every record of the data must have one, unless there is an `extra_function`.
        extra_function: computes the extra response of each pair, such as the chosen one under another prompt.
        fit_inputs: data that `fit` reads: `margin`, `probability`, `responses`, names of columns.
        lists: whether it reads lists of responses to one prompt: every response is a record of its own, whose label is
            the column `score`, and the records of a list are always in one micro-batch (`PairData.lists`).

    Raises:
        UsageError: `|` combines two requirements with different token functions of the same name, or with different
            extra responses.
    """

    min_references: int = 0
    max_references: int | None = None
    statistics: frozenset[Need] = frozenset()
    reference_statistics: frozenset[Need] = frozenset()
    columns: frozenset[str] = frozenset()
    token_columns: frozenset[str] = frozenset()
    token_functions: Mapping[str, TokenFunction] = field(default_factory=dict, hash=False)
    sides: tuple[str, ...] = ("chosen", "rejected")
    extra_function: ExtraFunction | None = None
    fit_inputs: frozenset[str] = frozenset()
    lists: bool = False

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if isinstance(f.default, frozenset)):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"Requirements: {name} is a set of names, got the string '{value}'")
            object.__setattr__(self, name, frozenset(value))
        if unknown := set(self.sides) - set(SIDES):
            raise TypeError(f"Requirements: sides are {', '.join(SIDES)}, got {', '.join(sorted(unknown))}")

    @property
    def compares(self) -> bool:
        """Whether a statistic compares whole distributions of the policy with those of the first reference."""
        return any(isinstance(need, COMPARING_NEEDS) for need in self.statistics)

    def __or__(self, other: "Requirements") -> "Requirements":
        for name in self.token_functions.keys() & other.token_functions.keys():
            if self.token_functions[name] is not other.token_functions[name]:
                raise UsageError(f"two parts compute different token columns with the name {name}: rename one of them")
        if all("extra_response" in own.sides for own in (self, other)) and self.extra_function != other.extra_function:
            raise UsageError(
                "two objectives read different extra responses (that of each record, or one that is computed), and a "
                "pair has one: train with them one after the other"
            )
        limits = [most for most in (self.max_references, other.max_references) if most is not None]
        return Requirements(
            min_references=max(self.min_references, other.min_references),
            max_references=min(limits, default=None),
            statistics=self.statistics | other.statistics,
            reference_statistics=self.reference_statistics | other.reference_statistics,
            columns=self.columns | other.columns,
            token_columns=self.token_columns | other.token_columns,
            token_functions={**self.token_functions, **other.token_functions},
            sides=tuple(side for side in SIDES if side in self.sides or side in other.sides),
            extra_function=self.extra_function or other.extra_function,
            fit_inputs=self.fit_inputs | other.fit_inputs,
            lists=self.lists or other.lists,
        )
