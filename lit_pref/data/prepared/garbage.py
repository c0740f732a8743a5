"""Garbage collection while pairs are prepared."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
EVERY = 16


@contextmanager
def collection_paused() -> Iterator[None]:
    """Switch automatic garbage collection off, which would walk through every module and every row again and again.

    Objects that exist at the beginning are left out of collections meanwhile (`gc.freeze`), unless some are already.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()


def collecting(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items unchanged, and collect garbage after every few of them: errors of rows refer to themselves."""
    for k, item in enumerate(items, start=1):
        yield item
        if k % EVERY == 0:
            gc.collect()
