"""One row of a source, and the error that names one row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pref.errors import UserError

CSV_ENDINGS = (".csv", ".csv.gz")
HUB_NAME = re.compile(
    r"([\w.-]+/[\w.-]+):(\w+(?:\.\w+)*(?:\[[\d:%-]*\])?)(?<!\.jsonl)(?<!\.parquet)(?<!\.csv)(?<!\.gz)"
)
"""`owner/name:split`, the split as a whole or a slice of it: `train[:5%]`."""


@dataclass(frozen=True)
class Row:
    """One row of a source; `line` counts from 1 (in Parquet and hub datasets: the row).

    A mapping makes rows of this project's own fields out of those of a source (`data/formats/`). Of such a row,
    `names` says what a field was called in the source, `clipped` that its margin was cut to the mapping's bound, and
    `chosen_first` whether the text that the row calls chosen came first in the source; None where the source itself
    calls the texts chosen and rejected. `prefers` is what a label beside the strength says.
    """

    file: str
    line: int
    values: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    clipped: bool = False
    chosen_first: bool | None = None
    prefers: Literal["chosen", "rejected", "tie"] | None = None

    @property
    def is_table(self) -> bool:
        """Whether the file knows texts only, so that numbers are written out."""
        return self.file.endswith(CSV_ENDINGS)

    def named(self, field: str) -> str:
        """What the source calls a field; further words after its name stay."""
        name, blank, rest = field.partition(" ")
        return self.names.get(name, name) + blank + rest

    @property
    def place(self) -> str:
        """The file and the line in it; of tables that have no lines, the row."""
        rows = self.file.endswith(".parquet") or HUB_NAME.fullmatch(self.file)
        return f"{self.file}, {'row' if rows else 'line'} {self.line}"


class BadRow(UserError):
    """One row that cannot be a pair; `kind` is the reason without the row's own numbers, to count by.

    `field` is None where the line itself is at fault: then the row has no values. `row_place` is file and line.
    """

    def __init__(self, row: Row, field: str | None, reason: str, remedy: str, detail: str = "") -> None:
        self.row_place = row.place
        told = reason if field is None else f"{row.named(field)} {reason}"
        self.kind = re.sub(r"\[\d+\]", "[]", told)
        super().__init__(f"{row.place}: {told}{detail}; {remedy}, or leave such rows out with data.bad_rows: lenient.")
