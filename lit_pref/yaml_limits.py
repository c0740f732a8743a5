"""Refuses YAML whose aliases stand for more values than any configuration holds, before it is built or copied."""

import math
from collections.abc import Callable
from typing import Any

import yaml

from lit_pref.errors import UsageError

MOST_VALUES = 100_000
"""More than any configuration or mapping has, and few enough to copy."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_alias_bomb(text: str, place: str) -> None:
    """Refuse YAML text whose aliases expand to too many values, or to themselves.

    Args:
        text: the YAML; faults of another kind are left to its reader.
        place: its name in the message.

    Raises:
        UsageError: its aliases expand to more than `MOST_VALUES` values.
    """
    if "*" not in text or "&" not in text:
        return
    try:
        root = yaml.compose(text, Loader=LOADER)
    except (yaml.YAMLError, RecursionError):
        return
    if root is not None and _size(root, {}) > MOST_VALUES:
        raise UsageError(
            f"{place}: its YAML aliases (*NAME) stand for more than {MOST_VALUES} values; write out the values that "
            "are meant, without aliases of aliases"
        )


def limited(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that reads YAML as `load` does, once its aliases are known to be few."""

    def load_limited(text: str) -> Any:
        refuse_alias_bomb(text, f"the value that begins with {text.strip()[:40]!r}")
        return load(text)

    return load_limited


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node has with all aliases written out; infinity for one that contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted, so that one that contains itself has no end
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]
