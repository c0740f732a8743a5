"""Progress of generating: responses, tokens per second and the time left, on one line or every half a minute."""

import sys
import time
from collections.abc import Callable

from lit_pref.errors import visible

EVERY_LINE, EVERY_UPDATE = 30.0, 0.5  # seconds between two lines of a log, and two updates of a terminal


class Progress:
    """Shows how far generating is.

    Args:
        total: number of responses.
        done: number of responses that are there already.
        most: the most tokens of a response, from which the time is estimated before a response is finished.
        clock: seconds, for tests.
    """

    def __init__(self, total: int, done: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.most = total, done, most
        self.tokens = 0
        self._clock, self._start, self._before = clock, clock(), done
        self._terminal = sys.stdout.isatty()
        self._shown = self._start

    def add(self, tokens: int) -> None:
        """Count tokens as they are generated."""
        self.tokens += tokens
        self._show()

    def finish(self, responses: int) -> None:
        """Count finished responses."""
        self.done = min(self.total, self.done + responses)
        self._show()

    def shared(self, done: int) -> None:
        """Take over how many responses are there, other processes' included."""
        self.done = max(self.done, min(done, self.total))

    def line(self) -> str:
        """Return the state as one line."""
        elapsed = max(self._clock() - self._start, 1e-9)
        speed = f"{self.tokens / elapsed:,.0f} tokens/s"
        return f"progress    {self.done} of {self.total} responses, {speed}, {self._left(elapsed)}"

    def _left(self, elapsed: float) -> str:
        remaining = self.total - self.done
        if remaining == 0:
            return f"{duration(elapsed)} in all"
        if self.done > self._before:
            return f"{duration(elapsed * remaining / (self.done - self._before))} left"
        if self.tokens:
            longest = max(0.0, remaining * self.most - self.tokens) * elapsed / self.tokens
            return f"at most {duration(longest)} left"
        return "time left unknown"

    def end(self) -> None:
        """Print the last state."""
        print(("\r\x1b[K" if self._terminal else "") + self.line(), flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(("\r\x1b[K" if self._terminal else "") + visible(text), flush=True)

    def _show(self) -> None:
        now = self._clock()
        if now - self._shown < (EVERY_UPDATE if self._terminal else EVERY_LINE):
            return
        self._shown = now
        if self._terminal:
            print(f"\r\x1b[K{self.line()}", end="", flush=True)
        else:
            print(self.line(), flush=True)


def duration(seconds: float) -> str:
    """Return a time in words, to two units.

    >>> duration(4.2), duration(75), duration(7260)
    ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
