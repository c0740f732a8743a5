"""Compute the missing scores of a store, each once, also when several processes ask at the same time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lit_pref.errors import UserError
from lit_pref.references.store import ReferenceStore, Scores
from lit_pref.references.wanted import Array, NeededScores

BATCH_TOKENS = 8192
"""The most tokens of a micro-batch of several pairs, padding included. Fixed: company decides a score's last bits."""
_POLL = 0.2  # seconds between two looks at what others do
_SAY_EVERY = 30.0  # seconds between two lines in a log


@dataclass(frozen=True)
class Ranks:
    """Processes that hold one sharded reference together and so must do every step together; alone by default.

    Args:
        rank: of this process.
        size: how many there are.
        agree: gives every rank the first one's value.
        meet: waits for all.
    """

    rank: int = 0
    size: int = 1
    agree: Callable[[Any], Any] = lambda value: value
    meet: Callable[[], None] = lambda: None


def batches(pairs: Array, tokens: Array) -> list[Array]:
    """Pairs of one block in the micro-batches in which they are read, in order, by a rule that knows only lengths.

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


def load(store: ReferenceStore, wanted: NeededScores, seen: set[str]) -> None:
    """Take what is wanted from the files of the store that were not `seen` yet."""
    for name in store.parts():
        if name not in seen:
            seen.add(name)
            if (part := store.read(name)) is not None:
                wanted.take(part)


class StoreFiller:
    """One pass over the blocks of what is wanted.

    A block is claimed by a lock of the operating system, so that simultaneous runs and ranks share the work without
    knowing each other, and a killed one holds up nobody. What is computed twice all the same does no harm.

    Args:
        store: to fill.
        wanted: by this run.
        score: gives the scores of a micro-batch of pairs.
        label: names the reference.
        say: prints a line, on one rank.
        terminal: whether a bar may be drawn.
        ranks: that read in lockstep.
    """

    def __init__(
        self,
        store: ReferenceStore,
        wanted: NeededScores,
        score: Callable[[Array], Scores],
        label: str,
        say: Callable[[str], None],
        terminal: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.store, self.wanted, self.score = store, wanted, score
        self.label, self.say, self.terminal = label, say, terminal
        self.ranks = ranks or Ranks()
        self._seen: set[str] = set()

    def run(self) -> bool:
        """Until nothing is missing; whether anything was.

        Raises:
            UserError: a score is not finite, or the store cannot be written.
        """
        load(self.store, self.wanted, self._seen)
        missing = self.ranks.agree(self.wanted.missing)
        if not missing:
            return False
        count = f"{missing} of {len(self.wanted.addresses)} scores"
        self.say(f"{self.label}: {count} are missing from the store and are computed first")
        left = self.wanted.blocks()
        names = {id(block): self.wanted.name(block) for block in left}
        began, waiting = time.monotonic(), False
        with self.store.present(), self._progress() as done:
            while left := [block for block in left if not self._finish(block, names[id(block)], done)]:
                if not waiting:
                    self.say(f"{self.label}: waiting for {len(left)} block(s) that another process computes")
                waiting = True
                time.sleep(_POLL)
        self.say(f"{self.label}: all scores are there, after {_duration(time.monotonic() - began)}")
        return True

    def _finish(self, block: Array, name: str, done: Callable[[int], None]) -> bool:
        """Compute what a block lacks; False where another process is at it."""
        if not len(self._lacking(block)):
            return True
        lock = self.store.claim(name) if self.ranks.rank == 0 else None
        if not self.ranks.agree(lock is not None):
            return False
        try:
            lacking = self._lacking(block)  # whoever held the lock before has done it
            if len(lacking):
                part = self._compute(lacking)
                self.wanted.take(part)
                self.store.write(part)
                done(int(self.wanted.tokens[lacking].sum()))
            # Not after an error: the others are still within the model, and would meet nobody there.
            self.ranks.meet()
        finally:
            if lock is not None:
                self.store.release(lock)
        return True

    def _lacking(self, block: Array) -> Array:
        load(self.store, self.wanted, self._seen)
        return self.ranks.agree(self.wanted.lacking(block))

    def _compute(self, pairs: Array) -> Scores:
        """The scores of this rank's share of the pairs."""
        cut = batches(pairs, self.wanted.tokens[pairs])
        rank, size = self.ranks.rank, self.ranks.size
        parts: list[Scores] = []
        for start in range(0, len(cut), size):
            # Every rank reads as many batches as the others: the last one again where there is none left.
            part = self.score(cut[min(start + rank, len(cut) - 1)])
            if start + rank < len(cut) or not parts:
                parts.append(part)
        tokens = [part.tokens for part in parts if part.tokens is not None]
        addresses, numbers, lengths = (np.concatenate([part[column] for part in parts]) for column in range(3))
        scores = Scores(addresses, numbers, lengths, np.concatenate(tokens) if tokens else None)
        if not np.isfinite(scores.scores).all():
            raise UserError(
                f"{self.label} gives {int((~np.isfinite(scores.scores)).sum())} of {len(scores.scores)} responses a "
                "score that is not finite: check its weights, or give it a larger dtype"
            )
        return scores

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int], None]]:
        """Yields what is called with the tokens of each block that is done."""
        everything = np.arange(len(self.wanted.pairs))
        total = int(self.wanted.tokens[self.wanted.lacking(everything)].sum())
        began = said = time.monotonic()
        here = 0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, transient=True, disable=not self.terminal)
        task = bar.add_task(self.label, total=total)

        def done(tokens: int) -> None:
            nonlocal said, here
            here += tokens
            left = int(self.wanted.tokens[self.wanted.lacking(everything)].sum())
            bar.update(task, completed=total - left)
            now = time.monotonic()
            # After the first block, and in a log now and then.
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
