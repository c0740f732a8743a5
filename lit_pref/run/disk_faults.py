"""Turns a full disk or a folder that cannot be written, met anywhere in a run, into one sentence."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer

from lit_pref.callbacks.checkpointing import checkpoint_folder, words_for_resuming
from lit_pref.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_faults(trainer: Trainer, run_dir: Path) -> Iterator[None]:
    """Context in which an error of the disk is raised as a `UserError`, with the step from which the run resumes.

    TensorBoard writes in a thread of its own, whose traceback is not printed: the main thread meets the same error.
    """
    hook = threading.excepthook

    def quiet(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and arguments.exc_value.errno in (*_FULL, *_CLOSED)):
            hook(arguments)

    threading.excepthook = quiet
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_CLOSED):
            raise
        place = error.filename or run_dir
        kept = words_for_resuming(checkpoint_folder(trainer, run_dir))
        remedy = "make room on it" if error.errno in _FULL else "make it writable, or name another folder (--run_dir)"
        what = f"the disk of {place} is full" if error.errno in _FULL else f"{place} cannot be written"
        raise UserError(f"{what} ({error.strerror or error}): {remedy}; {kept}") from error
    finally:
        threading.excepthook = hook
