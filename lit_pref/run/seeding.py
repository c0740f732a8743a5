"""Seeds the process of a run."""

from jsonargparse import Namespace
from lightning.pytorch import seed_everything

from lit_pref.errors import UsageError


def seed_process(config: Namespace) -> int:
    """Seed this process with `seed_everything` of a configuration, in which its value replaces true; return it.

    Raises:
        UsageError: it is false.
    """
    asked = config.seed_everything
    if asked is False:
        raise UsageError("seed_everything is false, and every draw of a run follows a seed: give a number, such as 0")
    config.seed_everything = seed_everything(None if asked is True else asked, workers=True)
    return int(config.seed_everything)
