"""Generates responses block by block, together with other processes that have the same output folder."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pref.errors import UserError
from lit_pref.generating.blocks import ERROR, Block, Blocks
from lit_pref.generating.engine import Answer, Engine
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt
from lit_pref.generating.settings import SETTINGS, agree, digest_of
from lit_pref.printing import say

POLL = 0.5  # seconds between two looks at the blocks of other processes
Watch = Callable[[Sequence[dict[str, Any]]], None]
"""Is given the rows of each block once they are written, and may raise to end the command."""


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


def generate_into(
    out: Path,
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: dict[str, Any],
    remarks: dict[str, Any],
    watch: Watch | None = None,
) -> Blocks:
    """Generate the responses that a folder lacks, and return its blocks, all of which are then complete.

    Args:
        out: the folder, which is made; with other settings it is refused.
        engine: generates the responses.
        prompts: from `engine.usable`.
        settings: `samples`, `seed`, `max_new_tokens`, `block`, and whatever else decides the responses.
        remarks: further values to record, which decide nothing.
        watch: is given the rows that are there already, and those of each block that is written.

    Raises:
        UserError: the folder cannot be written, or all requests of a block failed.
        UsageError: the folder has other settings.
    """
    mine = {**engine.settings(), "prompts": len(prompts), "prompts_digest": digest_of(prompts), **settings}
    if new := not (out / SETTINGS).exists():
        engine.load()  # a model that cannot be loaded leaves no folder behind
    agree(out, mine, {**remarks, **engine.remarks()})
    blocks = Blocks(out, prompts, settings["samples"], settings["block"])
    there = blocks.responses_there()
    total = len(prompts) * settings["samples"]
    say(f"output      {out}: {there} of {total} responses are there" if there else f"output      {out}")
    if watch is not None:
        watch([row for block in blocks.all for row in blocks.rows(block) or ()])
    if there < total and not new:
        engine.load()
    progress = Progress(total, there, settings["max_new_tokens"])
    try:
        generate_missing(engine, blocks, settings["seed"], progress, watch)
    except KeyboardInterrupt:
        raise UserError(f"interrupted; finished blocks are kept in {out}, and the same command resumes") from None
    return blocks


def generate_missing(engine: Engine, blocks: Blocks, seed: int, progress: Progress, watch: Watch | None = None) -> None:
    """Generate the responses that are missing; return once all blocks are complete, whoever wrote them.

    Raises:
        UserError: a server answered no request of a block, or the folder cannot be written.
    """
    waiting = list(blocks.all)
    while waiting:
        waiting = [block for block in waiting if not _complete(engine, blocks, block, seed, progress, watch)]
        if waiting:  # blocks of other processes; if one of them is killed, its block is free
            time.sleep(POLL)
    progress.shared(progress.total)
    progress.end()


def _complete(engine: Engine, blocks: Blocks, block: Block, seed: int, progress: Progress, watch: Watch | None) -> bool:
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
    if watch is not None:
        watch([row for row in rows if row is not None])
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
