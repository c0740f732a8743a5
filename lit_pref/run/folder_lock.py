"""The lock of a run folder: one process trains in a folder at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lit_pref.errors import UsageError
from lit_pref.printing import say
from lit_pref.run.folders import make_folder


@contextmanager
def locked(run_dir: Path, first_rank: bool) -> Iterator[None]:
    """Context that holds the lock of a run folder; the operating system releases it when the process ends.

    A run that is refused or tried out leaves no folder behind.

    Args:
        run_dir: the run folder; it is made.
        first_rank: whether this is the first rank, which holds the lock for all ranks of the run.

    Raises:
        UsageError: another process trains in the folder.
        UserError: the folder cannot be made.
    """
    if not first_rank:
        yield
        return
    make_folder(run_dir)
    path = run_dir / ".lock"
    holder = _holder(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another run{holder} trains in {run_dir} at this moment; wait for its end, or name another folder "
            f"(--run_dir {run_dir}-2)"
        ) from None
    except (OSError, NotImplementedError) as error:
        say(f"note        {run_dir} cannot be locked ({error}): see to it that no second run is started in it")
        yield
        return
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        # Lightning opens the event file of TensorBoard before the model is built.
        left = [found for found in run_dir.iterdir() if found != path]
        if all(found.name.startswith("events.out.tfevents") for found in left):
            with suppress(OSError):
                for found in (*left, path):
                    found.unlink()
                run_dir.rmdir()
        lock.release()


def holder_of(run_dir: Path) -> str | None:
    """Return who trains in a folder at this moment, for use in a sentence; None if nobody does or it is not known."""
    path = run_dir / ".lock"
    if not path.exists():
        return None
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        return _holder(path)
    except (OSError, NotImplementedError):
        return None


def _holder(lock: Path) -> str:
    """Name the process that holds the lock, for use in a sentence; empty if it is unknown."""
    try:
        text = lock.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return f" ({text})" if text else ""
