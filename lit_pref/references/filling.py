"""Computes the missing scores of a store, each once, even if several processes do so at the same time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lit_pref.errors import UserError
from lit_pref.references.lookup import Array, NeededScores
from lit_pref.references.store import ReferenceStore, Scores

BATCH_TOKENS = 8192
"""The most tokens of a micro-batch of several pairs, padding included. It is constant, because the last bits of a score
depend on the other pairs of its batch."""
_POLL = 0.2  # seconds between two checks of the blocks of other processes
_SAY_EVERY = 30.0  # seconds between two lines of progress in a log


@dataclass(frozen=True)
class Ranks:
    """Processes that share one sharded reference and therefore run every step together; by default a single process.

    Args:
        rank: the rank of this process.
        size: number of processes.
        broadcast: returns the first rank's value on every rank.
        barrier: waits for all ranks.
    """

    rank: int = 0
    size: int = 1
    broadcast: Callable[[Any], Any] = lambda value: value
    barrier: Callable[[], None] = lambda: None


def batches(pairs: Array, tokens: Array) -> list[Array]:
    """Split the pairs of a block into micro-batches, in order, by a rule that depends on lengths alone.

    >>> [batch.tolist() for batch in batches(np.array([4, 5, 6]), np.array([3000, 2000, 100]))]
    [[4], [5, 6]]
    """
    cut: list[list[int]] = []
    widest = 0
    for pair, width in zip(pairs, tokens, strict=True):
        widest = max(widest, int(width))
        if not cut or 2 * widest * (len(cut[-1]) + 1) > BATCH_TOKENS:
            cut.append([])
            widest = int(width)
        cut[-1].append(int(pair))
    return [np.array(batch) for batch in cut]


def load(store: ReferenceStore, needed: NeededScores, seen: set[str]) -> None:
    """Load needed scores from the files of the store that are not yet in `seen`."""
    for name in store.parts():
        if name not in seen:
            seen.add(name)
            if (part := store.read(name)) is not None:
                needed.take(part)


class StoreFiller:
    """Fills the store block by block with the scores that a run needs.

    A block is claimed by a lock of the operating system, so that simultaneous runs and ranks share the work without
    knowing each other, and a killed process blocks no other. If a score is computed twice, it does no harm.

    Args:
        store: the store to fill.
        needed: the scores that this run needs.
        score: returns the scores of a micro-batch of pairs (`PairScorer.score`).
        label: the name of the reference.
        say: prints a line, on one rank only.
        terminal: whether to draw a progress bar.
        ranks: the processes that score together.
    """

    def __init__(
        self,
        store: ReferenceStore,
        needed: NeededScores,
        score: Callable[[Array], Scores],
        label: str,
        say: Callable[[str], None],
        terminal: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.store, self.needed, self.score = store, needed, score
        self.label, self.say, self.terminal = label, say, terminal
        self.ranks = ranks or Ranks()
        self._seen: set[str] = set()

    def run(self) -> bool:
        """Compute scores until none is missing; return whether any was.

        Raises:
            UserError: a score is not finite, or the store cannot be written.
        """
        load(self.store, self.needed, self._seen)
        missing = self.ranks.broadcast(self.needed.missing)
        if not missing:
            return False
        count = f"{missing} of {len(self.needed.keys)} scores"
        self.say(f"{self.label}: {count} are missing from the store and are computed first")
        left = self.needed.blocks()
        names = {id(block): self.needed.name(block) for block in left}
        began, waiting = time.monotonic(), False
        with self.store.present(), self._progress() as done:
            while left := [block for block in left if not self._finish(block, names[id(block)], done)]:
                if not waiting:
                    self.say(f"{self.label}: waiting for {len(left)} block(s) that another process computes")
                waiting = True
                time.sleep(_POLL)
        self.say(f"{self.label}: all scores are stored, after {_duration(time.monotonic() - began)}")
        return True

    def _finish(self, block: Array, name: str, done: Callable[[int], None]) -> bool:
        """Compute the missing scores of a block; return False if another process is computing them."""
        if not len(self._lacking(block)):
            return True
        lock = self.store.claim(name) if self.ranks.rank == 0 else None
        if not self.ranks.broadcast(lock is not None):
            return False
        try:
            lacking = self._lacking(block)  # the previous holder of the lock may have computed it
            if len(lacking):
                part = self._compute(lacking)
                self.needed.take(part)
                self.store.write(part)
                done(int(self.needed.tokens[lacking].sum()))
            # There is no barrier after an error: the other ranks are still inside the model, so this one would wait
            # forever.
            self.ranks.barrier()
        finally:
            if lock is not None:
                self.store.release(lock)
        return True

    def _lacking(self, block: Array) -> Array:
        load(self.store, self.needed, self._seen)
        return self.ranks.broadcast(self.needed.lacking(block))

    def _compute(self, pairs: Array) -> Scores:
        """Compute the scores of this rank's share of the pairs."""
        cut = batches(pairs, self.needed.tokens[pairs])
        rank, size = self.ranks.rank, self.ranks.size
        parts: list[Scores] = []
        for start in range(0, len(cut), size):
            # Every rank scores the same number of batches; a rank without further batches repeats its last one.
            part = self.score(cut[min(start + rank, len(cut) - 1)])
            if start + rank < len(cut) or not parts:
                parts.append(part)
        tokens = [part.tokens for part in parts if part.tokens is not None]
        keys, numbers, lengths = (np.concatenate([part[column] for part in parts]) for column in range(3))
        scores = Scores(keys, numbers, lengths, np.concatenate(tokens) if tokens else None)
        if not np.isfinite(scores.scores).all():
            raise UserError(
                f"{self.label} gives {int((~np.isfinite(scores.scores)).sum())} of {len(scores.scores)} responses a "
                "score that is not finite: check its weights, or give it a larger dtype"
            )
        return scores

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of tokens of each finished block."""
        everything = np.arange(len(self.needed.pairs))
        total = int(self.needed.tokens[self.needed.lacking(everything)].sum())
        began = said = time.monotonic()
        here = 0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, transient=True, disable=not self.terminal)
        task = bar.add_task(self.label, total=total)

        def done(tokens: int) -> None:
            nonlocal said, here
            here += tokens
            left = int(self.needed.tokens[self.needed.lacking(everything)].sum())
            bar.update(task, completed=total - left)
            now = time.monotonic()
            # A line is printed after the first block, and at intervals if no bar is drawn.
            if left and (here == tokens or (not self.terminal and now - said > _SAY_EVERY)):
                said = now
                remaining = _duration((now - began) * left / here)
                self.say(f"{self.label}: {100 * (total - left) // total} % done, about {remaining} to go")

        with bar:
            yield done


def _duration(seconds: float) -> str:
    """
    >>> _duration(0.04), _duration(75), _duration(5000)
    ('0 s', '1 min 15 s', '1 h 23 min')
    """
    minutes, hours = divmod(round(seconds), 60)[0], round(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"
