"""Limits to the time and memory of rendering one conversation, because chat templates are programs of others."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lit_pref.errors import UserError

try:
    import resource
except ImportError:  # not on Windows, where the memory is not limited
    resource = None  # type: ignore[assignment]

SECONDS = 30.0
"""The most processor time for one conversation, which usually takes less than a millisecond."""
MEMORY = 2**31
"""The most further memory, in bytes."""


@contextmanager
def limited_rendering(name: str) -> Iterator[None]:
    """Context in which a chat template is stopped if it does not end or takes up the memory.

    The time is that of the processor and is limited in the main thread, where the interpreter runs handlers of signals;
    the memory is limited by the operating system where it can be.

    Args:
        name: the name of the tokenizer in the message.

    Raises:
        UserError: it was stopped.
    """
    limit = _limit_memory()
    previous = _start_clock(name)
    try:
        yield
    except MemoryError as error:
        raise UserError(_sentence(name, f"{MEMORY / 2**30:.0f} GiB of memory")) from error
    finally:
        if previous is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, previous)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, limit)


def _start_clock(name: str) -> Any:
    """Start the timer, and return the handler to restore; None where no timer can be used."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return None

    def stop(*_: Any) -> NoReturn:
        raise UserError(_sentence(name, f"{SECONDS:g} seconds"))

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    return signal.SIG_DFL if previous is None else previous


def _limit_memory() -> tuple[int, int] | None:
    """Limit the memory, and return the limits to restore; None where that is not possible."""
    if resource is None:
        return None
    try:
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        limits = [used + MEMORY, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    except (OSError, ValueError):
        return None
    return before


def _sentence(name: str, limit: str) -> str:
    return (
        f"the chat template of {name} was stopped, because it takes more than {limit} for one conversation: fix or "
        "replace the template (chat_template.jinja or tokenizer_config.json in its folder)"
    )
