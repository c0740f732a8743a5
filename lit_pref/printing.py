"""The only place that prints: texts reach the terminal with control characters as signs, once for all ranks."""

import sys

from lightning_utilities.core.rank_zero import rank_zero_only

from lit_pref.errors import visible


def say(text: str, error: bool = False) -> None:
    """Print a text at once, on the first rank.

    Args:
        text: may quote data, which cannot command the terminal; see `visible`.
        error: print to stderr, on every rank, because the first may be gone.
    """
    # Lightning sets the rank; a process that has not imported it is alone.
    if error or getattr(rank_zero_only, "rank", 0) == 0:
        print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)
