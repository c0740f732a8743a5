"""Turns Lightning's errors into sentences, and hides hints of libraries that do not apply here."""

import logging
import re
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
        raise UsageError(as_sentence(error)) from error


def as_sentence(error: Exception) -> str:
    """The text of Lightning's error in one line, with the setting that it speaks of and a remedy where it has none."""
    text = " ".join(str(error).split())
    return next(
        (f"{name}: {text.rstrip('.!')}; {remedy}" for sign, name, remedy in _REMEDIES if re.search(sign, text)), text
    )


_REMEDIES = (
    (
        "No supported gpu backend|can not run on your system|torch_xla",
        "trainer.accelerator",
        "leave the option out, as `auto` takes what this machine has, or set it to cpu; a GPU needs a driver and a "
        "build of torch that finds it (torch.cuda.is_available())",
    ),
    (
        r"`devices` selected with|Trainer\(devices=|requested gpu",
        "trainer.devices",
        "`auto` takes all that this machine has; on a CPU it is a number of processes, such as 1",
    ),
)


def hide_hints() -> None:
    """Hide the hints of Lightning and of transformers that do not apply here."""
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
        # Of transformers; the new name is younger than the oldest version that this package supports.
        ".*gradient_checkpointing.* is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def hide_warning_of_used_folder() -> None:
    """Hide Lightning's warning of a folder with checkpoints, for commands that write none."""
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
