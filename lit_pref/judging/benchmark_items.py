"""Items of benchmarks: a prompt with correct and incorrect responses, read from local files or from the hub."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.hints import did_you_mean
from lit_pref.pairs import Text

Scores = Sequence[Sequence[float]]
"""For each item the scores of its responses, in their order."""


@dataclass(frozen=True)
class BenchmarkItem:
    """One prompt of a benchmark; the first `correct` responses are correct, the others are not.

    `id` is unique in the benchmark; `place` is the file and line in words. The scores of an item are those of
    `responses`.
    """

    id: str
    prompt: Text
    responses: tuple[Text, ...]
    correct: int
    subset: str
    place: str
    file: str = ""
    line: int = 0

    @property
    def row(self) -> Row:
        """File and line of the item, for messages."""
        return Row(self.file, self.line, {})


def read_items(
    source: str,
    columns: Sequence[str],
    subset: str,
    known: Collection[str] | None = None,
    subset_of_all: str | None = None,
) -> list[BenchmarkItem]:
    """Read the items of a benchmark from columns `prompt`, `chosen`, `rejected`, `id` and that of the subset.

    `chosen` and `rejected` are a response each, or lists of responses.

    Args:
        source: a file, folder or pattern, or a dataset on the hub as `owner/name:split`.
        columns: the columns that every row must have.
        subset: the column with the subset of an item.
        known: the known subsets; None accepts all.
        subset_of_all: the subset of all items, instead of that of the column.

    Raises:
        UserError: a row cannot be read, lacks a column or a response, or has an unknown subset.
    """
    items: dict[str, BenchmarkItem] = {}
    for row in read_source(Source(source)):
        if isinstance(row, BadRow):
            raise row
        missing = [name for name in columns if row.values.get(name) is None]
        if missing:
            have = ", ".join(sorted(row.values))
            raise UserError(
                f"{row.place} has no {' and no '.join(missing)}; the benchmark needs the columns {', '.join(columns)}, "
                f"and the row has {have}."
            )
        item = _item(row, subset, subset_of_all)
        if known is not None and item.subset not in known:
            raise UserError(
                f"{row.place}: unknown subset {item.subset!r}{did_you_mean(item.subset, known) or ';'} "
                f"The benchmark has {', '.join(known)}."
            )
        if item.id in items:
            raise UserError(f"{row.place} has the id {item.id!r} of {items[item.id].place}; ids must be unique.")
        items[item.id] = item
    if not items:
        raise UserError(f"{source} has no items.")
    return list(items.values())


def _item(row: Row, subset: str, subset_of_all: str | None) -> BenchmarkItem:
    sides = []
    for name in ("chosen", "rejected"):
        value = row.values[name]
        is_list = isinstance(value, list) and not (value and isinstance(value[0], dict))
        sides.append(tuple(value) if is_list else (value,))
        if not sides[-1] or not all(_is_text(text) for text in sides[-1]):
            raise UserError(f"{row.place}: {name} must be a text or a list of texts, with at least one.")
    group = subset_of_all if subset_of_all is not None else str(row.values[subset])
    number = row.values.get("id")
    name = row.place if number is None else f"{group}:{number}"
    responses, correct = (*sides[0], *sides[1]), len(sides[0])
    return BenchmarkItem(name, row.values["prompt"], responses, correct, group, row.place, row.file, row.line)


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, dict) for entry in value))


def check_scores(items: Sequence[BenchmarkItem], scores: Scores) -> None:
    """Refuse scores that do not fit the items, or that are not finite.

    Raises:
        UserError: a score is not finite.
        ValueError: the number of scores differs from the number of responses.
    """
    if len(items) != len(scores):
        raise ValueError(f"{len(items)} items and scores of {len(scores)}")
    for item, own in zip(items, scores, strict=True):
        if len(own) != len(item.responses):
            raise ValueError(f"{item.place} has {len(item.responses)} responses and {len(own)} scores")
        if not all(math.isfinite(score) for score in own):
            raise UserError(f"{item.place}: the judge gave the scores {list(own)}, which are not finite.")


def prompts_of(items: Sequence[BenchmarkItem]) -> list[str]:
    """Return a text for each item's prompt, by which items are resampled."""
    return [item.prompt if isinstance(item.prompt, str) else repr(item.prompt) for item in items]
