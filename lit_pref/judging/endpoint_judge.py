"""A server as a judge: asks for verdicts, keeps them in a folder, and counts those that cannot be read."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.generating.blocks import ERROR
from lit_pref.generating.endpoint import AT_ONCE, Endpoint
from lit_pref.generating.generate import generate_into
from lit_pref.generating.prompts import Prompt, PromptFile, prompt_digest
from lit_pref.pairs import Message
from lit_pref.printing import say

BLOCK = 32
"""Requests that are written together, and of which a kill loses the answers."""
ENOUGH = 20
"""Verdicts after which too large a share of unreadable ones ends the command early."""
Reader = Callable[[str], float | None]
"""Returns the number in a verdict, or None if it is unreadable."""


def request(messages: Sequence[Message], row: Row) -> Prompt:
    """Return what to ask a judge; equal requests are asked once.

    Args:
        messages: the chat messages.
        row: where the response comes from, for messages to the user.
    """
    return Prompt(list(messages), prompt_digest(list(messages)), replace(row, values={}))


@dataclass(frozen=True)
class Verdict:
    """The answer of a judge and the number in it, which is None if the answer is unreadable."""

    text: str
    number: float | None


class EndpointJudge:
    """Asks a server for verdicts.

    Args:
        engine: the server.
        out: the folder of its answers, which are not asked for again.
        most_unreadable: the largest accepted share of verdicts that cannot be read; refusals and empty answers count.

    Raises:
        UsageError: the share is out of range.
    """

    def __init__(self, engine: Endpoint, out: Path, most_unreadable: float) -> None:
        if not 0 <= most_unreadable <= 1:
            raise UsageError(f"--max_unreadable is {most_unreadable:g}; it is a share, from 0 to 1")
        self.engine, self.out, self.most_unreadable = engine, out, most_unreadable
        self.unreadable, self.asked = 0, 0

    def ask(self, requests: Sequence[Prompt], read: Reader, needed: str, about: dict[str, Any]) -> list[Verdict]:
        """Return the verdict on each request; `asked` and `unreadable` then count the distinct ones.

        Args:
            requests: what to ask, from `request`.
            read: reads a verdict.
            needed: what a readable verdict has, for messages.
            about: further settings by which the folder is recognised.

        Raises:
            UserError: requests failed, or too many verdicts are unreadable.
            UsageError: the folder has answers to other questions or with other settings.
        """
        distinct = list({one.id: one for one in requests}.values())
        self.engine.usable(distinct, PromptFile(str(self.out)))
        for line in (*self.engine.describe(distinct), f"judge       {len(distinct)} requests"):
            say(line)
        reading = _Reading(read, needed, self.most_unreadable)
        sampling = {"temperature": self.engine.sampling.temperature, "max_new_tokens": self.engine.max_new_tokens}
        settings = {**about, **sampling, "samples": 1, "seed": self.engine.seed, "block": BLOCK}
        blocks = generate_into(self.out, self.engine, distinct, settings, {}, reading.take)
        path = blocks.merge()
        for block in blocks.all:
            reading.count(blocks.rows(block) or ())
        for line in (*self.engine.last_lines(), *reading.describe(), f"verdicts    {path}"):
            say(line)
        self.unreadable, self.asked = len(reading.unreadable), len(reading.found)
        reading.refuse_failed(self.out)
        reading.refuse_unreadable(at_least=1)
        return [reading.found[one.id] for one in requests]


@dataclass
class _Reading:
    """Reads the rows of verdicts, and refuses too large a share of unreadable ones."""

    read: Reader
    needed: str
    most: float
    found: dict[str, Verdict] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def take(self, rows: Sequence[dict[str, Any]]) -> None:
        """Read the rows of a block as soon as it is written."""
        self.count(rows)
        self.refuse_unreadable(ENOUGH)

    def count(self, rows: Sequence[dict[str, Any]]) -> None:
        """Read rows, each of which counts once however often it is read."""
        for row in rows:
            id = row["prompt_id"]
            for known in (self.failed, self.unreadable, self.found):
                known.pop(id, None)
            error = str(row.get("error", "no reason")) if row["finish_reason"] == ERROR else ""
            if error and error.partition(":")[0] not in AT_ONCE:  # the server's failure, and no answer of the model
                self.failed[id] = error
                continue
            verdict = Verdict(row["response"], None if error else self.read(row["response"]))
            self.found[id] = verdict
            if verdict.number is None:
                self.unreadable[id] = error or _end(verdict.text, row["finish_reason"])

    def refuse_unreadable(self, at_least: int) -> None:
        """Refuse too large a share of unreadable verdicts.

        Raises:
            UserError: it is above the limit, with `at_least` verdicts or more.
        """
        if len(self.found) >= at_least and len(self.unreadable) > self.most * len(self.found):
            shown = "; ".join(list(dict.fromkeys(self.unreadable.values()))[:3])
            raise UserError(
                f"{len(self.unreadable)} of {len(self.found)} verdicts are unreadable, more than --max_unreadable "
                f"{self.most:g} accepts ({shown}); a readable one has {self.needed}: fix the --template, raise "
                "--max_new_tokens if verdicts are cut, or take a stronger judge. No score was written"
            )

    def refuse_failed(self, out: Path) -> None:
        """Refuse requests that failed, so that no result lacks them silently.

        Raises:
            UserError: some failed.
        """
        if self.failed:
            kinds = Counter(error.partition(":")[0] for error in self.failed.values())
            raise UserError(
                f"{len(self.failed)} of {len(self.failed) + len(self.found)} requests to the judge failed "
                f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}; the first: "
                f"{next(iter(self.failed.values()))}); the others are kept in {out}, no score was written, and the "
                "same command asks for the failed ones alone"
            )

    def describe(self) -> list[str]:
        """Return lines about unreadable verdicts."""
        lines = []
        if self.unreadable:
            share = 100 * len(self.unreadable) / len(self.found)
            lines.append(f"unreadable  {len(self.unreadable)} of {len(self.found)} verdicts ({share:.3g} %), such as:")
            lines += [f"            {text}" for text in list(dict.fromkeys(self.unreadable.values()))[:3]]
        return lines


def _end(text: str, finish: str) -> str:
    line = " ".join(text.split())
    cut = ", cut at --max_new_tokens" if finish == "length" else ""
    return repr(line if len(line) <= 100 else f"... {line[-96:]}") + cut
