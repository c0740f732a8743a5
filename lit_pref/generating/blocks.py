"""Blocks of prompts in an output folder: each is claimed by one process at a time, and written whole."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_pref.errors import UserError
from lit_pref.generating.prompts import Prompt
from lit_pref.generating.settings import folder_lock, write_lines, writing

ERROR = "error"
RESPONSES = "responses.jsonl"
LEFTOVER = 3600  # seconds after which nobody writes an unfinished file any more


@dataclass(frozen=True)
class Block:
    """Consecutive prompts whose responses are one file; `number` counts from 0."""

    number: int
    prompts: Sequence[Prompt]


class Blocks:
    """The blocks of an output folder.

    A block's file appears by a rename once all its responses are there. Its lock is the operating system's, which ends
    with the process, so that a killed process loses the block that it was at, and another one takes it over.

    Args:
        out: the output folder.
        prompts: all prompts, in their order.
        samples: the number of responses to each prompt.
        size: the number of prompts in a block.
    """

    def __init__(self, out: Path, prompts: Sequence[Prompt], samples: int, size: int) -> None:
        self.out, self.samples = out, samples
        self.folder = out / "blocks"
        self.all = [Block(k, prompts[start : start + size]) for k, start in enumerate(range(0, len(prompts), size))]
        with writing(out):
            self.folder.mkdir(exist_ok=True)
        # Rows that failed are tried again once by each command; of blocks that others write meanwhile, none is.
        self._at_start = {block.number: self._state(block) for block in self.all}

    def path(self, block: Block) -> Path:
        """Return the file of a block."""
        return self.folder / f"{block.number:06d}.jsonl"

    def is_done(self, block: Block) -> bool:
        """Return whether a block is complete, and none of its rows failed before this command."""
        state = self._state(block)
        rows = None if state is None else self.rows(block)
        if rows is None:
            return False
        return state != self._at_start[block.number] or not any(row["finish_reason"] == ERROR for row in rows)

    def number_written(self) -> int:
        """Return how many blocks have a file, whoever wrote it."""
        return sum(path.suffix == ".jsonl" for path in self.folder.iterdir())

    def rows(self, block: Block) -> list[dict[str, Any]] | None:
        """Return the rows of a complete block; None if there is no file, or not one of this block."""
        try:
            # Not splitlines, which also splits at line separators of Unicode within a text.
            lines = self.path(block).read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            found = [(row["prompt_id"], row["sample"], row["finish_reason"]) for row in rows]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        expected = [(prompt.id, sample) for prompt in block.prompts for sample in range(self.samples)]
        return rows if [entry[:2] for entry in found] == expected else None

    @contextmanager
    def claimed(self, block: Block) -> Iterator[bool]:
        """Context that yields whether this process alone has the block, and the block is still open."""
        lock = FileLock(self.folder / f"{block.number:06d}.lock")
        try:
            with suppress(Timeout):
                lock.acquire(timeout=0)
        except (OSError, NotImplementedError):  # this file system has no locks
            yield not self.is_done(block)
            return
        try:
            yield lock.is_locked and not self.is_done(block)
        finally:
            lock.release()

    def write(self, block: Block, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows of a block.

        Raises:
            UserError: the folder cannot be written.
        """
        with writing(self.out):
            write_lines(self.path(block), [json.dumps(row, ensure_ascii=False) + "\n" for row in rows])

    def merge(self) -> Path:
        """Write all rows, in the order of the prompts, to one file, and return it.

        Raises:
            UserError: a block is missing or damaged, or the folder cannot be written.
        """
        path = self.out / RESPONSES
        with writing(self.out), folder_lock(self.out):
            write_lines(path, self._all_lines())
            for leftover in self.folder.glob(".*.unfinished"):  # of killed processes
                if time.time() - leftover.stat().st_mtime > LEFTOVER:
                    leftover.unlink(missing_ok=True)
        return path

    def _all_lines(self) -> Iterator[str]:
        for block in self.all:
            rows = self.rows(block)
            if rows is None:
                raise UserError(
                    f"{self.path(block)} is missing or damaged; run the same command again, which writes it"
                )
            yield from (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def responses_there(self) -> int:
        """Return how many responses need not be generated again."""
        rows = [row for block in self.all for row in self.rows(block) or ()]
        return sum(row["finish_reason"] != ERROR for row in rows)

    def _state(self, block: Block) -> tuple[int, int] | None:
        """Return what changes whenever the file of a block is written; None if there is none."""
        try:
            stat = self.path(block).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino
