"""Sentences for unknown names, with the nearest known ones or the names that other libraries use."""

import difflib
import re
from collections.abc import Iterable

from lit_pref.other_names import ADVICE, ELSEWHERE, EXPLAINED, OF_COMMANDS

RENAMED = {"closing_words": "print_summary"}
"""Options by their old names, with the new ones."""

_OURS = {name: option for names, option in ELSEWHERE.items() for name in names.split()}
_ADVICE = {name: sentence for names, sentence in ADVICE.items() for name in names.split()}
_COMMANDS = {"train": "fit", "run": "fit", "sft": "fit", "dpo": "fit", "eval": "validate", "evaluate": "validate"}
_COMMANDS |= {"merge": "export", "save": "export", "inspect": "check", "infer": "predict"}


def nearest_names(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `most` known names that are most similar to `name`, regardless of case.

    >>> nearest_names("mmop", ["DPO", "MMPO"])
    ['MMPO']
    """
    lower = {k.lower(): k for k in known}
    if name.lower() in lower:
        return [lower[name.lower()]]
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=most, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence that suggests up to two similar names; empty if none is similar.

    >>> did_you_mean("bta", ["beta", "gamma"], prefix="--")
    '; did you mean --beta?'
    """
    guesses = nearest_names(name, known, most=2, cutoff=0.5)
    return f"; did you mean {' or '.join(prefix + guess for guess in guesses)}?" if guesses else ""


def command_meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the command of another library's name, or a similar one.

    >>> command_meant("train", ["fit", "test"])
    '; did you mean fit?'
    """
    return f"; did you mean {_COMMANDS[name]}?" if name in _COMMANDS else did_you_mean(name, known)


def advice(name: str) -> str:
    """The end of a sentence that says what to do instead of a setting of another library; empty for other names.

    >>> advice("reward_model")[:38]
    '; a reward model is trained with model'
    """
    return f"; {_ADVICE[name]}" if name in _ADVICE else ""


def our_option(name: str) -> str:
    """Return the option of a run that a setting of TRL, transformers or Lightning leads to; empty for other names.

    >>> our_option("learning_rate")
    'model.optimizer.lr'
    """
    return _OURS.get(name, "")


def argument_meant(name: str, key: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests an argument of the class at `key` for one of another library or for a typo.

    >>> argument_meant("learning_rate", "model.optimizer", ["lr", "betas"])
    '; did you mean lr?'
    """
    owner, _, ours = _OURS.get(name, "").rpartition(".")
    if owner == key and ours in known:
        return f"; did you mean {ours}?"
    return (advice(name) if key.startswith("model") else "") or did_you_mean(name, known)


def unknown_option(name: str, options: Iterable[str], in_file: bool = False, command: str = "") -> str:
    """The sentence for an unknown option of a command or key of a file; for a renamed one it gives the new name.

    >>> unknown_option("num_train_epochs", [])
    'unknown option --num_train_epochs; here it is called --trainer.max_epochs'
    """
    dashes = "" if in_file else "--"
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now: write {dashes}{RENAMED[name]}"
    key = re.sub(r"\.(class_path|init_args\b.*)$", "", name)
    unknown = f"unknown key {name!r} in the configuration" if in_file else f"unknown option --{name}"
    options, plain = list(options), key.replace("-", "_").lower()
    ours = _OURS.get(plain) or _OURS.get(plain.rpartition(".")[-1])
    if how := OF_COMMANDS.get((command, plain)):
        return f"{unknown}; {how}"
    if not plain.startswith(("data.", "trainer.")) and (instead := advice(plain.rpartition(".")[-1])):
        return unknown + instead
    if ours in (None, key) or nearest_names(key, options, cutoff=0.93):  # it is our name, mistyped
        return f"{unknown}{did_you_mean(key, options, prefix=dashes)}"
    explained = f" ({EXPLAINED[ours]})" if ours in EXPLAINED else ""
    return f"{unknown}; here it is called {dashes}{ours}{explained}"


def stray_word(word: str) -> str:
    """The sentence for a word on the command line that is neither an option nor the value of one.

    >>> stray_word("dpo.yaml")
    "unknown word 'dpo.yaml' on the command line; a configuration file is given as --config dpo.yaml"
    """
    how = "options begin with --"
    if word.endswith((".yaml", ".yml")):
        how = f"a configuration file is given as --config {word}"
    elif any(sign in word for sign in "{}[]"):
        how = "put a value that contains spaces into quotes: --NAME '{a: b, c: d}'"
    elif "=" in word:
        how = f"options begin with --: --{word}"
    return f"unknown word {word!r} on the command line; {how}"
