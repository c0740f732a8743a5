"""One row of a source, and the errors that name one row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pref.errors import UserError

CSV_ENDINGS = (".csv", ".csv.gz")
ARRAY_ENDINGS = (".json", ".json.gz")
HUB_NAME = re.compile(
    r"([\w.-]+/[\w.-]+):(\w+(?:\.\w+)*(?:\[[\d:%-]*\])?)(?<!\.jsonl)(?<!\.parquet)(?<!\.csv)(?<!\.gz)"
)
"""`owner/name:split`, where the split may be a slice: `train[:5%]`."""


@dataclass(frozen=True)
class Row:
    """One row of a source; `line` counts from 1 (in Parquet files and hub datasets it is the row number).

    A mapping converts the rows of a source to canonical rows, whose columns have this project's names
    (`data/formats/`). In a canonical row, `names` maps a field to its name in the source; `clipped` says that the
    margin was cut to the mapping's bound; `chosen_first` says whether the text that the row calls chosen came first in
    the source, and is None if the source itself names a chosen and a rejected text. `prefers` is the side that a label
    prefers, if there is one in addition to the strength. `list_number` counts the lists of the source, if a canonical
    row is one response of a list.
    """

    file: str
    line: int
    values: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    clipped: bool = False
    chosen_first: bool | None = None
    prefers: Literal["chosen", "rejected", "tie"] | None = None
    list_number: int | None = None

    @property
    def is_table(self) -> bool:
        """Whether all cells of the file are texts, so that numbers are texts too."""
        return self.file.endswith(CSV_ENDINGS)

    def named(self, field: str) -> str:
        """Return a field's name in the source; further words after the field's name are kept."""
        name, blank, rest = field.partition(" ")
        return self.names.get(name, name) + blank + rest

    @property
    def place(self) -> str:
        """The file and the line, or the row number for sources without lines."""
        rows = self.file.endswith((".parquet", *ARRAY_ENDINGS)) or HUB_NAME.fullmatch(self.file)
        return f"{self.file}, {'row' if rows else 'line'} {self.line}"


class BadRow(UserError):
    """One row that cannot become a pair; `kind` is the reason without the row's own numbers, by which rows are counted.

    `field` is None if the line itself cannot be read; the row then has no values. `row_place` is file and line, and
    `fault` the sentence after the field, without the option that leaves rows out.
    """

    def __init__(self, row: Row, field: str | None, reason: str, remedy: str, detail: str = "") -> None:
        self.row_place, self.field, self.fault = row.place, field, f"{reason}{detail}; {remedy}"
        sentence = reason if field is None else f"{row.named(field)} {reason}"
        self.kind = re.sub(r"\[\d+\]", "[]", sentence)
        super().__init__(
            f"{row.place}: {sentence}{detail}; {remedy}, or leave such rows out with data.bad_rows: lenient."
        )


class LeftOut(BadRow):
    """A row that belongs to no pair, such as an answer without a rank: counted, but not an error in the data."""
