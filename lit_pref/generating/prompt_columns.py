"""Finds the prompt in the rows of a source: in a known format, by a mapping, or in a column of prompts alone."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.conversations import Dialogues
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.formats.mapping_file import mapping_from, read_yaml
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import PROMPT_WORDS, UnreadColumns
from lit_pref.errors import UsageError, UserError

ALONE_NAME = "prompts"
ALONE = ("prompt", "messages", "conversations", "conversation", "question", "instruction", "query")
"""Columns in which a file of prompts alone may have them, the first one that is there."""
RESPONSE_WORDS = re.compile(
    "(completion|response|output|answer|chosen|rejected|reference|target|solution|label|gold|generation)s?"
)
"""Words in the name of a column that belongs to a response, so that prompts can be read without it."""


@dataclass(frozen=True)
class PromptColumns:
    """Converts rows to canonical rows of which only the prompt and the id are read.

    Args:
        mapping: the mapping of the source.
        has_responses: whether the rows have responses, of which several may belong to one prompt.
        ends_with_response: whether the prompt is a conversation whose last turn, of the assistant, is a response.
    """

    mapping: RowMapping
    has_responses: bool
    ends_with_response: bool = False

    def describe(self) -> str:
        """Return how the source is read, for the first lines."""
        if self.mapping.name == ALONE_NAME:
            return f"prompts in the column {self.mapping.prompt}"
        return f"format {self.mapping.name}, of which the prompts are read"

    def canonical_rows(self, rows: Iterable[Row | BadRow], ignored: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield canonical rows, or the error of each row that has no prompt.

        Raises:
            UserError: a column that is not read may belong to the prompt.
        """
        read = RowReader().read_columns | self.mapping.columns_read
        watched = UnreadColumns(read, (*ignored, *self.mapping.ignore)).watch(_without_responses(rows, read))
        if self.mapping.tree is not None:
            yield from Conversion(self.mapping).canonical_rows(watched)
        elif self.mapping.chosen is not None or self.mapping.a is not None:
            yield from Conversion(self._without_strength()).canonical_rows(watched)
        else:
            for row in watched:
                yield row if isinstance(row, BadRow) else self._canonical(row)

    def _without_strength(self) -> RowMapping:
        plain = RowMapping(
            self.mapping.name,
            "none",
            chosen=self.mapping.chosen or self.mapping.a,
            rejected=self.mapping.rejected or self.mapping.b,
        )
        same = ("prompt", "prompt_then", "system", "format", "as_", "prompt_repeated", "id", "ignore")
        return replace(plain, **{name: getattr(self.mapping, name) for name in same})

    def _canonical(self, row: Row) -> Row | BadRow:
        mapping = self.mapping
        assert mapping.prompt is not None
        dialogues = Dialogues(mapping.format, mapping.as_ == "text")
        try:
            value = _joined(row, mapping)
            system = None if mapping.system is None else (mapping.system, ValuePath(mapping.system).of(row.values))
            prompt, _ = dialogues.read(row, (mapping.prompt, value), [], system)
        except BadRow as bad:
            return bad
        if self.ends_with_response and isinstance(prompt, list) and prompt[-1].get("role") == "assistant":
            prompt = prompt[:-1]
        values = {name: value for name, value in row.values.items() if name != mapping.prompt} | {"prompt": prompt}
        if mapping.id is not None:
            values["id"] = ValuePath(mapping.id).of(row.values)
        return Row(row.file, row.line, values, {"prompt": mapping.prompt})


def columns_of(given: str | dict[str, Any] | None, rows: Sequence[Row], path: str) -> PromptColumns:
    """Return how the prompts of a source are found.

    Args:
        given: name, file or content of a mapping; without `chosen`, `a` and `responses` it reads prompts alone.
        rows: the first rows of the source.
        path: the source, for messages.

    Raises:
        UserError: there is no column of prompts, or the mapping has an error.
    """
    try:
        mapping = mapping_of(given, lambda: rows)
    except UserError:
        alone = _alone(given, rows)
        if alone is None:
            raise
        return alone
    if not rows or any(name in row.values for row in rows for name in map(_column, _responses(mapping))):
        return PromptColumns(mapping, has_responses=True)
    return _alone(given, rows) or PromptColumns(mapping, has_responses=True)


def _alone(given: str | dict[str, Any] | None, rows: Sequence[Row]) -> PromptColumns | None:
    """Return the columns of a file of prompts alone, or None if the rows or the mapping are those of another format."""
    if isinstance(given, str) and not given.endswith((".yaml", ".yml")):
        return None
    values = dict(read_yaml(Path(given)) if isinstance(given, str) else given or {})
    if {"base", "chosen", "rejected", "a", "b", "responses", "tree"} & values.keys():
        return None
    if values.get("kind", "none") != "none":
        return None
    column = values.get("prompt") or next((name for name in ALONE if _in_most(name, rows)), None)
    if column is None:
        return None
    if not isinstance(column, str) or (rows and not any(ValuePath(column).within(row.values) for row in rows)):
        columns = ", ".join(map(str, rows[0].values))
        raise UsageError(f"--mapping: `prompt` is {column}, which no row of {rows[0].file} has; it has {columns}.")
    values |= {"kind": "none", "prompt": column, "chosen": column, "id": values.get("id", "id")}
    mapping = replace(mapping_from(values, ALONE_NAME, "The mapping of --mapping"), chosen=None)
    has_responses = any(_of_response(str(name)) for row in rows for name in row.values)
    return PromptColumns(mapping, has_responses, ends_with_response=column in ALONE[1:4])


def _responses(mapping: RowMapping) -> list[str]:
    return [path for path in (mapping.chosen, mapping.a, mapping.responses) if path is not None]


def _column(path: str) -> str:
    return ValuePath(path).column


def _in_most(name: str, rows: Sequence[Row]) -> bool:
    return 2 * sum(name in row.values for row in rows) > len(rows)


def _joined(row: Row, mapping: RowMapping) -> Any:
    """Return the value of the prompt, joined with the texts that follow it."""
    value = ValuePath(str(mapping.prompt)).of(row.values)
    then = [ValuePath(path).of(row.values) for path in mapping.prompt_then]
    further = [text for text in then if text is not None and text != ""]
    if not further:
        return value
    if not all(isinstance(text, str) for text in (value, *further)):
        raise BadRow(row, str(mapping.prompt), "is not a text", "only texts can be joined by the mapping's prompt_then")
    return "\n\n".join([value, *(text for text in further if text.strip())])


def _without_responses(rows: Iterable[Row | BadRow], read: Collection[str]) -> Iterator[Row | BadRow]:
    """Yield rows without the columns of responses that are not read."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        else:
            values = {name: value for name, value in row.values.items() if name in read or not _of_response(str(name))}
            yield replace(row, values=values)


def _of_response(name: str) -> bool:
    words = set(re.findall(r"[a-z]+", name.lower()))
    return any(map(RESPONSE_WORDS.fullmatch, words)) and not words & PROMPT_WORDS
