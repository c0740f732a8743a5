"""Prompts to answer, read from any file that training reads, or from a file of prompts alone."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_pref.data.checking.fields import id_of, prompt_of
from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, LeftOut, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.generating.prompt_columns import PromptColumns, columns_of
from lit_pref.pairs import TEMPLATE_ARGUMENTS, Text

FIRST = 64  # rows by which a format is recognised
OPTIONS = ("mapping", "bad_rows", "ignore_columns", "lost_text", "special_text")
"""Options that other commands call data.NAME, as in the messages about single rows."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, where it comes from, and its id, which depends on nothing but its text (and a repetition's number)."""

    text: Text
    id: str
    row: Row
    own_id: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the columns of the prompt in the file of responses, which training reads as the same prompt."""
        record: dict[str, Any] = {"prompt": self.text}
        if not isinstance(self.text, str) and (arguments := self.text[0].get(TEMPLATE_ARGUMENTS)):
            first = {key: part for key, part in self.text[0].items() if key != TEMPLATE_ARGUMENTS}
            further = {key: part for key, part in arguments.items() if key != "tools"}
            record = {
                "prompt": [first, *self.text[1:]],
                "tools": arguments.get("tools"),
                "chat_template_kwargs": further,
            }
        return {name: value for name, value in record.items() if value}

    def origin(self) -> dict[str, Any]:
        """Return the columns that say where the prompt comes from."""
        own = {} if self.own_id is None else {"id": self.own_id}
        return {"prompt_id": self.id, "file": self.row.file, "line": self.row.line, **own}


@dataclass
class PromptFile:
    """Reads the prompts of a source, in its order.

    Args:
        path: a source as training reads it: a file, a folder, a glob or `owner/name:split` on the hub.
        mapping: name, file or content of a mapping; None recognises the format.
        unique: leave out further rows with a prompt that came before; None does so if the rows have responses.
        bad_rows: "strict" stops at the first faulty row, "lenient" counts faulty rows and leaves them out.
        ignore_columns: columns and message keys that may be left unread.
        limit: the most prompts that are read.
    """

    path: str
    mapping: str | dict[str, Any] | None = None
    unique: bool | None = None
    bad_rows: Literal["strict", "lenient"] = "strict"
    ignore_columns: tuple[str, ...] = ()
    limit: int | None = None
    format: str = field(init=False, default="")
    rows: int = field(init=False, default=0)
    repeated: int = field(init=False, default=0)
    left_out: Counter[str] = field(init=False, default_factory=Counter)
    first_left_out: str = field(init=False, default="")

    def read(self) -> list[Prompt]:
        """Return the prompts.

        Raises:
            UserError: the source or, if strict, a row of it cannot be read, or there is no prompt.
        """
        with option_names():
            source = Source(self.path, self.mapping)
            first = [row for row in itertools.islice(read_source(source), FIRST) if isinstance(row, Row)]
            columns = columns_of(self.mapping, first, self.path)
            self.format = columns.describe()
            if self.unique is None:
                self.unique = columns.has_responses
            prompts = list(itertools.islice(self._prompts(columns, source), self.limit))
            if not prompts:
                reasons = ", ".join(f"{kind}: {count}" for kind, count in self.left_out.most_common())
                raise UserError(
                    f"{self.path} contains no prompts ({self.rows} rows{'; ' + reasons if reasons else ''}); give a "
                    "file with some."
                )
        return prompts

    def describe(self, kept: int) -> list[str]:
        """Return the first lines: how the source was read, and what was left out."""
        what = "are left out" if self.unique else "are answered too"
        equal = f", of which {self.repeated} repeat a prompt and {what}" if self.repeated else ""
        lines = [f"prompts     {kept} of {self.path} ({self.format}; {self.rows} rows read{equal})"]
        if self.left_out:
            reasons = ", ".join(f"{count}: {kind}" for kind, count in self.left_out.most_common())
            lines.append(f"warning     {self.left_out.total()} rows are left out ({reasons})")
        return lines

    def leave_out(self, bad: BadRow) -> None:
        """Count a row that is left out.

        Raises:
            BadRow: faulty rows are refused.
        """
        if self.bad_rows == "strict" and not isinstance(bad, LeftOut):
            raise bad
        self.left_out[bad.kind] += 1
        self.first_left_out = self.first_left_out or str(bad)

    def _prompts(self, columns: PromptColumns, source: Source) -> Iterator[Prompt]:
        seen: Counter[str] = Counter()
        for row in columns.canonical_rows(read_source(source), self.ignore_columns):
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                text = prompt_of(row, self.ignore_columns)
                own_id = id_of(row) if row.values.get("id") is not None else None
            except BadRow as bad:
                self.leave_out(bad)
                continue
            id = prompt_digest(text)
            seen[id] += 1
            if seen[id] > 1:
                self.repeated += 1
                if self.unique:
                    continue
                id = f"{id}-{seen[id] - 1}"
            yield Prompt(text, id, replace(row, values={}), own_id)


def prompt_digest(text: Text) -> str:
    """Return 16 characters that identify a prompt, to the last character and with the arguments of its template.

    >>> prompt_digest("2+2=") == prompt_digest("2+2=") != prompt_digest("2+2= ")
    True
    """
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def option_names() -> Iterator[None]:
    """Context in which messages about data name the options of this command, which have no `data.` before them."""
    try:
        yield
    except UserError as error:
        said = str(error)
        for name in OPTIONS:
            said = re.sub(rf"\bdata\.{name}:?(?!\w)", f"--{name}", said)  # a value follows an option without a colon
        renamed = UserError(said)
        renamed.exit_code = error.exit_code
        raise renamed from error
