"""Common base of objectives and parts: requirements, fitting, and a repr of the arguments as given."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from lit_pref.errors import UsageError
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import Strengths


class _Call(NamedTuple):
    """One call of a constructor: its own arguments with defaults, the names that were given, and its `**kwargs`."""

    owner: str
    values: dict[str, Any]
    given: frozenset[str]
    extra: dict[str, Any]


class Component(nn.Module):
    """An objective or a part of one.

    The arguments of its constructor are recorded as given, and its `repr` prints them; so a method can use the names
    and units of its paper for its arguments without storing them as attributes. A `UsageError` "Part: argument ..." by
    a part that the constructor makes is raised with the name of the class that the user wrote, and of its argument.
    """

    log_probs_only: bool = False
    """The component is meaningful only for log-probs of tokens, not for the scalar of a reward model."""

    still_reference: str = ""
    """The warning, with reason and remedy, if it expects references that do not move in training; empty if not."""

    fixed_first_reference: str = ""
    """The error, with reason and remedy, if its first reference must not move in training; empty if it may."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    @property
    def requirements(self) -> Requirements:
        """The requirements on the run; a subclass may replace the property by a class attribute."""
        return Requirements()

    def fit(self, strengths: Strengths) -> list[str]:
        """Fit open parameters to the training pairs; called once before the first step, in the same way on every rank.

        Fitted values are state: a checkpoint that is loaded later overwrites them.

        Returns:
            Lines for the log.
        """
        return []

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor as they were given, defaults included.

        They include an argument of a base class if the caller could have given it, but not one that a subclass
        computes, because the subclass has its own name or value for it.
        """
        calls: list[_Call] = self.__dict__.get("_calls", [])
        shown: dict[str, Any] = {}
        for depth, call in enumerate(calls):
            for name, value in call.values.items():
                if depth == 0 or name in calls[0].extra or name not in call.given:
                    shown.setdefault(name, value)
        return shown

    def __repr__(self) -> str:
        return call_text(self, self.arguments)


def call_text(module: nn.Module, values: Mapping[str, Any]) -> str:
    """`ClassName(name=value, ...)`."""
    return f"{type(module).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that records its arguments and calls `init`; the outermost class is recorded first."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Component, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            init(self, *args, **kwargs)  # raises Python's own error, which names the class
            raise
        given, extra = frozenset(bound.arguments), {}
        bound.apply_defaults()
        kinds = {name: parameter.kind for name, parameter in list(signature.parameters.items())[1:]}
        for name, kind in kinds.items():
            if kind is inspect.Parameter.VAR_KEYWORD:
                extra = bound.arguments[name]
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        values = {name: bound.arguments[name] for name, kind in kinds.items() if kind in plain}
        call = _Call(type(self).__name__, values, given, extra)
        self.__dict__.setdefault("_calls", []).append(call)
        try:
            init(self, *args, **kwargs)
        except UsageError as error:
            inner: _Call | None = vars(error).get("call")
            if inner is not None:
                error.args = (_as_given(str(error), inner, call),)
            vars(error)["call"] = call
            raise

    return __init__


def _as_given(message: str, inner: _Call, outer: _Call) -> str:
    """Return the refusal "Class: argument ..." of an inner constructor in the names of the one that called it.

    An argument of another name is the one whose value was passed on.
    """
    owner, _, refusal = message.partition(": ")
    if owner != inner.owner or not refusal:
        return message
    name, _, rule = refusal.partition(" ")
    if name in inner.given and name not in outer.values:
        value = inner.values[name]
        passed = [own for own in outer.given & outer.values.keys() - inner.values.keys() if outer.values[own] is value]
        name = passed[0] if len(passed) == 1 else name
    return f"{outer.owner}: {name} {rule}"
