"""Finds values inside messages, such as the arguments of a tool call, that a chat template does not write."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lit_pref.pairs import TEMPLATE_ARGUMENTS, Message

Place = tuple[int, tuple[Any, ...]]
"""A value's message and its path in it: keys and positions."""
HARMLESS = ("id", "type", "index")
"""Keys that say how a value is to be read; so does a key that ends in `_id`."""


def values_left_out(render: Callable[[list[Message]], str], turns: Sequence[Message], first: int = 0) -> list[Place]:
    """Return the places of the values, beyond role and content, that change nothing in the rendered conversation.

    Args:
        render: renders messages; the empty string if the template refuses them.
        turns: the messages.
        first: the first message to look at.
    """
    places = [
        (number, (key, *path))
        for number, turn in enumerate(turns)
        for key, value in turn.items()
        if number >= first and key not in ("role", "content", TEMPLATE_ARGUMENTS)
        for path in _leaves(key, value)
    ]
    if not places:
        return []
    text = render(list(turns))
    mark = "zq"
    while mark in text:
        mark += "q"
    numbers = range(len(places))
    shown = render(_altered(turns, {place: f"{mark}{number}z" for place, number in zip(places, numbers, strict=True)}))
    # A mark may be missing because another one steered the template: each of these values is looked at alone.
    unseen = [place for place, number in zip(places, numbers, strict=True) if f"{mark}{number}z" not in shown]
    return [place for place in unseen if render(_altered(turns, {place: mark}, invert=True)) == text]


def _leaves(key: Any, value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text, number and truth value in a JSON value."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from ((name, *path) for path in _leaves(name if isinstance(value, dict) else key, part))
    elif value not in (None, "") and key not in HARMLESS and not str(key).endswith("_id"):
        yield ()


def _altered(turns: Sequence[Message], marks: dict[Place, str], invert: bool = False) -> list[Message]:
    """Return messages in which a mark follows the text, or replaces the number, at each place.

    A mark is as true as the number or truth value it replaces; `invert` makes the latter false instead, or true.
    """

    def altered(value: Any, place: Place) -> Any:
        number, path = place
        if isinstance(value, dict):
            return {key: altered(part, (number, (*path, key))) for key, part in value.items()}
        if isinstance(value, list):
            return [altered(part, (number, (*path, k))) for k, part in enumerate(value)]
        mark = marks.get(place)
        if mark is None:
            return value
        if invert and isinstance(value, bool):
            return not value
        return value + mark if isinstance(value, str) else mark

    return [altered(turn, (number, ())) for number, turn in enumerate(turns)]
