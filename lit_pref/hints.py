"""The nearest known names to a mistyped one, and the sentence for an unknown option."""

import difflib
import re
from collections.abc import Iterable

RENAMED = {"closing_words": "print_summary"}
"""Options by their old names, with the new ones."""


def nearest_names(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `most` known names that are most similar to `name`, regardless of case.

    >>> nearest_names("mmop", ["DPO", "MMPO"])
    ['MMPO']
    """
    lower = {k.lower(): k for k in known}
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=most, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence that suggests up to two similar names; empty if none is similar.

    >>> did_you_mean("bta", ["beta", "gamma"], prefix="--")
    '; did you mean --beta?'
    """
    guesses = nearest_names(name, known, most=2, cutoff=0.5)
    return f"; did you mean {' or '.join(prefix + guess for guess in guesses)}?" if guesses else ""


def unknown_option(name: str, options: Iterable[str], in_file: bool = False) -> str:
    """The sentence for an unknown option or key of a file; for a renamed one it gives the new name."""
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now: write {'' if in_file else '--'}{RENAMED[name]}"
    if in_file:
        key = re.sub(r"\.(class_path|init_args\b.*)$", "", name)
        return f"unknown key {name!r} in the configuration{did_you_mean(key, options)}"
    return f"unknown option --{name}{did_you_mean(name, options, prefix='--')}"
