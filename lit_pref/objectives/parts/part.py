"""Base class of the parts of a `Pairwise` objective."""

import inspect
from abc import ABC

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.component import Component
from lit_pref.scores import PairScores, TokenRewards

Sides = tuple[Tensor, Tensor]
"""A value of the chosen and of the rejected response of every pair, each (B,)."""


class Part(Component, ABC):
    """A part of a `Pairwise` objective, such as its target or its link.

    A part declares its `requirements`, and flags that describe it and restrict its combination with other parts. It
    does not see the other parts: `lit_pref/objectives/combining.py` compares flags. A flag that restricts other parts
    is the message that the user gets, with reason and remedy; an empty string restricts nothing.
    """

    sums_only: str = ""
    """Works only with an aggregation of tokens that is the plain sum (`TokenSum.plain_sum`)."""

    def __init__(self) -> None:
        super().__init__()
        refuse_other_arguments(type(self))

    @property
    def reads_log_probs(self) -> bool:
        """True if it is for log-probs only, or requires statistics that exist only for log-probs."""
        asked = self.requirements
        return self.log_probs_only or bool(asked.statistics - {TokenRewards()} or asked.reference_statistics)

    def read(self, field: str, policy: PairScores, pairs: PairData) -> Tensor:
        """Return the `margin`, the `probability` or the column `field` of every pair, (B,), in the scores' dtype.

        Raises:
            UserError: the batch does not have it.
        """
        known = {"margin": pairs.margin, "probability": pairs.probability}
        value = known[field] if field in known else pairs.columns.get(field)
        if value is None:
            raise UserError(
                f"{type(self).__name__} needs the field `{field}` of every pair, which these data do not have: name "
                f"its column in the data mapping, or choose another part than {type(self).__name__}."
            )
        if value.shape != (len(pairs),):
            raise ValueError(f"`{field}` must be (B,) = ({len(pairs)},), got {tuple(value.shape)}")
        return value.to(policy.chosen.scores.dtype)


def refuse_other_arguments(cls: type[Part]) -> None:
    """Refuse a part with methods that do not take the arguments which objectives give them, such as an old `forward`.

    Raises:
        UsageError: a method of the class takes other arguments than that of its kind, such as `Term`.
    """
    kind = cls.__mro__[cls.__mro__.index(Part) - 1]
    for name in ("forward", "log"):
        if name not in vars(kind):
            continue
        asked, own = (list(inspect.signature(getattr(of, name)).parameters) for of in (kind, cls))
        try:
            inspect.signature(getattr(cls, name)).bind(*asked)
        except TypeError as error:
            raise UsageError(
                f"{name} of {cls.__name__} takes ({', '.join(own[1:])}), and objectives call that of a {kind.__name__} "
                f"with ({', '.join(asked[1:])}): give it these arguments ({kind.__module__}.{kind.__name__})"
            ) from error
