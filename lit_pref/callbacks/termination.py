"""Ends a run on SIGTERM at once, on all its processes, with the exit code that a scheduler expects."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_pref.printing import say


class Terminated(SystemExit):
    """Raised when SIGTERM arrives; the process exits with 143, the code by which shells report that signal."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def ending_on_sigterm(trainer: Trainer | None = None, words: str = "") -> Iterator[None]:
    """Context in which SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt.

    Lightning's own handler lets a run end with exit code 0, and takes part in a collective call while other ranks may
    be in another one.

    Args:
        trainer: its processes are ended with this one; None if there are no others.
        words: a sentence to print then; empty where a callback says it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        launcher = None if trainer is None else trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGTERM)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    if trainer is not None:
        # Lightning registers a handler of its own when the run starts, which calls this function first.
        trainer._signal_connector._sigterm_notifier_fn = end  # type: ignore[method-assign, assignment]
        # In every batch, ranks would ask each other whether one of them has received the signal, and wait for their
        # devices. No rank has to ask, because each ends as soon as it receives the signal.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    try:
        yield
    except Terminated:
        if words:
            say(words)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
