"""Leases: the file that a worker touches while it runs a trial, so that others see when it is gone."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LEASE = 180.0
"""Seconds after which a lease that nobody touched has ended."""
BEAT = 30.0
"""Seconds between two touches."""


class Lease:
    """Context in which a thread touches a file every few seconds.

    Args:
        file: the file; it is made, and removed at the end.
        beat: seconds between two touches.
    """

    def __init__(self, file: Path, beat: float = BEAT) -> None:
        self.file = file
        self.beat = beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> "Lease":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._ended.wait(self.beat):
            with suppress(OSError):  # a full disk or a lost mount: the next touch may succeed
                self.file.touch()


def age(file: Path) -> float | None:
    """Return the seconds since a lease was touched, by the clock of its file system; None if there is no lease."""
    clock = file.with_name(f".clock-{os.getpid()}")
    try:
        touched = file.stat().st_mtime
        clock.touch()
        return clock.stat().st_mtime - touched
    except OSError:
        return None
    finally:
        with suppress(OSError):
            clock.unlink(missing_ok=True)
