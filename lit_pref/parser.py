"""The command line's parser: what changes a class drops the old class's arguments, and errors are one sentence."""

import argparse
import difflib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse._typehints
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.errors import UsageError
from lit_pref.models.policy import Policy
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.pairwise import Pairwise


def forget_arguments_of_the_old_class(parser_or_action: Any, old: Any, new: Any) -> None:
    """Where a later file or option names another class, drop every argument of the class before it.

    jsonargparse keeps the old arguments whose names the new class accepts too, defaults included: DPO would silently
    run with MMPO's beta, SGD with AdamW's weight decay.
    """
    if old and "init_args" in old and old["class_path"] != new["class_path"]:
        for name in list(vars(old["init_args"])):
            old["init_args"].pop(name)


jsonargparse._typehints.discard_init_args_on_class_path_change = forget_arguments_of_the_old_class


class Parser(LightningArgumentParser):
    """LightningCLI's parser without abbreviations and without two hundred lines of usage before an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(plain_sentence(message, list(_option_names(self)))) from ex


def plain_sentence(message: str, options: Iterable[str] = ()) -> str:
    """jsonargparse's report in one sentence, with the known names and the nearest guess where a name is unknown."""
    key = _found(r'Parser key "([^"]+)"', message)
    if name := _found(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(name, key)
    if path := _found(r"File does not exist: '([^']+)'", message):
        return f"config file {path} does not exist{_nearest(Path(path).name, _siblings(Path(path)))}"
    if name := _found(r"does not accept option '([^']+)'", message):
        return f"unknown key {name!r} in the configuration{_nearest(_without_class_path(name), options)}"
    if name := _found(r"unrecognized arguments: --(\S+)", message):
        name = name.split("=")[0].rstrip("+")
        return f"unknown option --{name}{_nearest(name, options, prefix='--')}"
    if name := _found(r"Option '([^']+)' is not accepted", message):
        return f"unknown argument {name!r}{_owner(name)}"
    if names := _found(r"the following arguments are required: (.+)", message):
        missing = ", ".join("--" + n.split(".", 1)[-1] for n in names.split(", "))
        return f"missing: {missing}; give them in a file (--config FILE) or on the command line"
    if _found(r"(expected \"subcommand\")", message):
        return "no command given; known: fit, validate, test, predict (python -m lit_pref --help)"
    if name := _found(r"argument subcommand: invalid choice: '([^']+)'", message):
        known = ["fit", "validate", "test", "predict", "export"]
        return f"unknown command {name!r}; known: {', '.join(known)}{_nearest(name, known)}"
    if detail := _found(r"Problems parsing config: (.+)", message, flags=re.DOTALL):
        return f"a configuration file is not valid YAML: {_one_line(detail)}"
    expected, value = _found(r"Expected an? (.+?)\. Got value", message), _found(r"Got value: (.+)", message)
    if expected:
        return f"{key}: expected {_type_name(expected)}, got {value!r}"
    return _one_line(message)


def known_subclasses(base: type) -> list[str]:
    """Names of the concrete subclasses of `base` that are imported, as they may be written in a configuration."""
    concrete = [cls for cls in (base, *_all_subclasses(base)) if not inspect.isabstract(cls)]
    return sorted({cls.__name__ for cls in concrete if not cls.__name__.startswith("_")})


def _class_arguments() -> dict[str, type]:
    """Which base class each class-valued argument takes, read from the signatures that take them."""
    bases: dict[str, type] = {"optimizer": torch.optim.Optimizer, "strategy": Strategy}
    bases |= {"callbacks": Callback, "logger": Logger}
    for owner in (PreferenceModule, Pairwise):
        for name, hint in typing.get_type_hints(owner.__init__).items():
            for part in _flatten(hint):
                if isinstance(part, type) and part.__module__.startswith("lit_pref") and part is not Policy:
                    bases[name] = part
    return bases


def _flatten(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list):
        for part in typing.get_args(hint):
            yield from _flatten(part)
    else:
        yield hint


def _unknown_class(name: str, key: str | None) -> str:
    base = _class_arguments().get((key or "").split(".")[-1].rstrip("+"))
    if base is None:
        return f"{key}: unknown class {name!r}; give its name or its import path"
    known = known_subclasses(base)
    extra = "" if "." not in name else "; a class of your own is written module.Class and must be importable from here"
    return f"{key}: unknown {base.__name__.lower()} {name!r}; known: {', '.join(known)}{_nearest(name, known)}{extra}"


def _owner(name: str) -> str:
    """The arguments that classes on this command line accept, for an argument that none of them accepts."""
    written = " ".join(sys.argv)
    for text in re.findall(r"--config[= ](\S+)", written):
        if Path(text).is_file():
            written += Path(text).read_text(encoding="utf-8", errors="replace")
    accepted: set[str] = set()
    owners: list[str] = []
    for base in _class_arguments().values():
        for cls in _all_subclasses(base):
            if re.search(rf"\b{cls.__name__}\b", written):
                owners.append(cls.__name__)
                accepted |= _init_arguments(cls)
    accepted |= {n for owner in (PreferenceModule, PreferenceDataModule, Policy) for n in _init_arguments(owner)}
    return _nearest(name, sorted(accepted)) + (f" (classes named: {', '.join(sorted(set(owners)))})" if owners else "")


def _all_subclasses(base: type) -> Iterator[type]:
    subclass: type
    for subclass in base.__subclasses__():
        yield subclass
        yield from _all_subclasses(subclass)


def _init_arguments(cls: type) -> set[str]:
    names = set()
    for ancestor in cls.__mro__:
        if "__init__" in vars(ancestor):
            names |= set(inspect.signature(ancestor.__init__).parameters)  # type: ignore[misc]
    return names - {"self", "args", "kwargs", "parts"}


def _option_names(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in (action.choices or {}).values():
                yield from _option_names(subparser)
        yield from (option[2:] for option in action.option_strings if option.startswith("--"))


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    known = list(known)
    lower = {k.lower(): k for k in known}
    guesses = [lower[g] for g in difflib.get_close_matches(name.lower(), lower, n=2, cutoff=0.5)]
    return f"; did you mean {' or '.join(prefix + guess for guess in guesses)}?" if guesses else ""


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _found(pattern: str, message: str, flags: int = 0) -> str | None:
    match = re.search(pattern, message, flags)
    return match.group(1) if match else None


def _without_class_path(name: str) -> str:
    return re.sub(r"\.(class_path|init_args\b.*)$", "", name)


def _type_name(text: str) -> str:
    return re.sub(r"<class '(\w+)'>", r"\1", text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
