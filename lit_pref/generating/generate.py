"""Generates responses block by block, together with other processes that have the same output folder."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pref.errors import UserError
from lit_pref.generating.blocks import ERROR, Block, Blocks
from lit_pref.generating.engine import Answer, Engine
from lit_pref.generating.progress import Progress

POLL = 0.5  # seconds between two looks at the blocks of other processes


@dataclass(frozen=True)
class Outcome:
    """The result of generating.

    Args:
        path: the file of all responses.
        rows: its rows.
        finished: how many rows have each finish reason.
        tokens: mean number of tokens of a response, or None if it is not known.
        same: whether all samples of every prompt are the same text, though several were asked for.
    """

    path: Path
    rows: int
    finished: Counter[str]
    tokens: float | None
    same: bool

    @property
    def failed(self) -> int:
        """The number of rows without a response."""
        return self.finished[ERROR]


def generate_missing(engine: Engine, blocks: Blocks, seed: int, progress: Progress) -> None:
    """Generate the responses that are missing; return once all blocks are complete, whoever wrote them.

    Raises:
        UserError: a server answered no request of a block, or the folder cannot be written.
    """
    waiting = list(blocks.all)
    while waiting:
        waiting = [block for block in waiting if not _complete(engine, blocks, block, seed, progress)]
        if waiting:  # blocks of other processes; if one of them is killed, its block is free
            time.sleep(POLL)
    progress.shared(progress.total)
    progress.end()


def _complete(engine: Engine, blocks: Blocks, block: Block, seed: int, progress: Progress) -> bool:
    """Return whether a block is complete, after generating it unless another process does."""
    if blocks.is_done(block):
        return True
    with blocks.claimed(block) as mine:
        if not mine:
            return False
        before = blocks.rows(block)
        tasks = [(prompt, sample) for prompt in block.prompts for sample in range(blocks.samples)]
        rows: list[dict[str, Any] | None] = [*before] if before else [None] * len(tasks)
        open_ = [k for k, row in enumerate(rows) if row is None or row["finish_reason"] == ERROR]
        answers = engine.answers([tasks[k] for k in open_], progress)
        for k, answer in zip(open_, answers, strict=True):
            rows[k] = answer.row(tasks[k], seed)
        blocks.write(block, [row for row in rows if row is not None])
        progress.finish(len(open_))
        progress.shared(blocks.number_written() * len(tasks))
    _refuse_all_failed(answers, block)
    return True


def _refuse_all_failed(answers: Sequence[Answer], block: Block) -> None:
    if answers and all(answer.of_server for answer in answers):
        raise UserError(
            f"all {len(answers)} requests of block {block.number} failed ({answers[0].error}); what other blocks have "
            "is kept: fix the cause and run the same command again, which asks for the missing responses alone"
        )


def finish(blocks: Blocks) -> Outcome:
    """Merge all blocks into one file, and count what it holds.

    Raises:
        UserError: the folder cannot be written, or a block was damaged meanwhile.
    """
    path = blocks.merge()
    finished: Counter[str] = Counter()
    tokens: list[int] = []
    same = blocks.samples > 1
    for block in blocks.all:
        rows = blocks.rows(block) or []
        finished.update(row["finish_reason"] for row in rows)
        tokens += [row["tokens"] for row in rows if row["tokens"] is not None]
        texts = [row["response"] for row in rows]
        samples = [texts[k : k + blocks.samples] for k in range(0, len(texts), blocks.samples)]
        same = same and all(len(set(of_prompt)) == 1 for of_prompt in samples)
    mean = sum(tokens) / len(tokens) if tokens else None
    return Outcome(path, finished.total(), finished, mean, same)
