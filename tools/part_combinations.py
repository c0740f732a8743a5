"""Combinations of the parts of `Pairwise`, found from the classes: which can be built, and why others are refused."""

import functools
import itertools
import random
import warnings
from collections.abc import Iterator

from lit_pref.describing import part_kinds, required_arguments
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise

Cell = dict[str, type | None]
"""A class for some parts of `Pairwise`, by the part's name; the others are defaults. None is a list without terms."""

Entries = frozenset[tuple[str, type | None]]
"""The entries of a cell, as a key of mappings."""


@functools.cache
def choices() -> dict[str, list[type | None]]:
    """Return the classes of each part, the default first."""
    kinds = part_kinds()
    return {**kinds, "terms": [None, *kinds["terms"]]}


def build(cell: Cell) -> Pairwise:
    """Return the objective of a cell, whose classes get defaults, and example values for required arguments.

    Raises:
        UsageError: the parts cannot be combined.
    """
    parts = {kind: cls(**required_arguments(cls)) for kind, cls in cell.items() if cls is not None}
    terms = [parts.pop("terms")] if "terms" in parts else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Pairwise(**parts, terms=terms)


def refusal(cell: Cell) -> str:
    """Return why the parts of a cell are refused; empty if they are not."""
    try:
        build(cell)
    except UsageError as error:
        return str(error).removeprefix("Pairwise: ")
    return ""


def pairs() -> Iterator[Cell]:
    """Yield each two classes of different parts."""
    for (first, those), (second, these) in itertools.combinations(choices().items(), 2):
        for one, other in itertools.product(those, these):
            yield {first: one, second: other}


def completed(cell: Cell) -> Cell | None:
    """Return a cell that can be built and contains this one; None if there is none.

    Only reference, tokens and target are changed: the default ones of the other parts ask for nothing.
    """
    kinds = [kind for kind in ("reference", "tokens", "target") if kind not in cell]
    for classes in itertools.product(*(representatives()[kind].values() for kind in kinds)):
        candidate = {**cell, **dict(zip(kinds, classes, strict=True))}
        alike = ((kind, representatives()[kind][properties(cls)]) for kind, cls in candidate.items())
        if not refused(Entries(alike)) and not refusal(candidate):
            return candidate
    return None


@functools.cache
def refused(cell: Entries) -> bool:
    """Return whether the parts of a cell are refused; remembered, because many cells differ in no property."""
    return bool(refusal(dict(cell)))


@functools.cache
def representatives() -> dict[str, dict[str, type | None]]:
    """Return, for each part, one class for all those with the same properties, by the properties."""
    found: dict[str, dict[str, type | None]] = {}
    for kind, classes in choices().items():
        for cls in classes:
            found.setdefault(kind, {}).setdefault(properties(cls), cls)
    return found


@functools.cache
def properties(cls: type | None) -> str:
    """Return the flags of a part and its numbers of references, which the rules of combination compare, as text."""
    if cls is None:
        return ""
    part = cls(**required_arguments(cls))
    flags = [name for name in dir(cls) if isinstance(getattr(cls, name), bool | str) and not name.startswith("__")]
    values = [(name, bool(getattr(part, name, None))) for name in (*flags, "hard", "proper")]
    asked = part.requirements
    return repr((values, asked.min_references, asked.max_references))


def count() -> int:
    """Return the number of cells of the full product."""
    total = 1
    for classes in choices().values():
        total *= len(classes)
    return total


def product(most: int, seed: int = 0) -> Iterator[Cell]:
    """Yield the full product, or `most` random cells of it if it is larger."""
    kinds = choices()
    if count() <= most:
        yield from (dict(zip(kinds, cell, strict=True)) for cell in itertools.product(*kinds.values()))
        return
    draw = random.Random(seed)
    yield from ({kind: draw.choice(classes) for kind, classes in kinds.items()} for _ in range(most))


@functools.cache
def valid_pairs() -> list[tuple[Cell, Cell]]:
    """Return each two classes that can be combined, with a cell that can be built and contains them."""
    return [(pair, cell) for pair in pairs() if (cell := completed(pair))]


def covering() -> list[Cell]:
    """Return few cells that can be built and that together have every pair of classes which can be combined."""
    defaults = {kind: classes[0] for kind, classes in choices().items()}
    waiting = {Entries(pair.items()): {**defaults, **cell} for pair, cell in valid_pairs()}
    cells = []
    while waiting:
        first, cell = next(iter(waiting.items()))
        kept = {kind for kind, _ in first}
        for pair in waiting:  # those that can be added, one after the other
            kinds = {kind for kind, _ in pair}
            if kept.isdisjoint(kinds) and not refusal(candidate := {**cell, **dict(pair)}):
                cell, kept = candidate, kept | kinds
        cells.append(cell)
        for covered in [pair for pair in waiting if pair <= cell.items()]:
            del waiting[covered]
    return cells
