"""Turns Lightning's errors into sentences, and hides its hints that do not apply here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_pref.errors import UsageError


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Raise Lightning's report of a wrong setting as a `UsageError`."""
    try:
        yield
    except MisconfigurationException as error:
        raise UsageError(" ".join(str(error).split())) from error


def hide_hints() -> None:
    """Hide the hints of Lightning that do not apply here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        # Every rank logs the same number, computed from the records of all.
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*predict returned None if it was on purpose.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
