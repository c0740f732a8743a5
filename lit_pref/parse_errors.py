"""Turns jsonargparse's reports of errors into one sentence each."""

import importlib
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lit_pref.hints import argument_meant, did_you_mean, nearest_names, stray_word, unknown_option

_ONLY_BASES = {
    "model.objective": "lit_pref.objectives.base.Objective",
    "model.optimizer": "torch.optim.Optimizer",
    "data.selection": "lit_pref.data.selection.selection.Selection",
}
PAIRWISE = "lit_pref.objectives.pairwise.Pairwise"
_OWN_CLASS = "; a class of your own is written module.Class and must be importable from here"
_WORDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
_WORDS |= {"list": "a list (written [a, b])", "dict": "a mapping", "NoneType": "null"}
_PRECISIONS = {"fp16": "16-mixed", "float16": "16-mixed", "bfloat16": "bf16-mixed", "fp32": "32-true"}
_WORDS |= {"PositiveInt": "a whole number above 0"}


def plain_sentence(message: str, options: Sequence[str] = ("config",), command: str = "") -> str:
    """Turn jsonargparse's report into one sentence, with the known names and the nearest guess if a name is unknown."""
    if found := re.search(
        r"^(?:Group '(.+?)' does not accept option|Option) '([^']+)'(?! is not accepted \[)", message
    ):
        return unknown_option(".".join(filter(None, found.groups())), options, in_file=True)
    if name := _found(r"unrecognized arguments: --(\S+)", message):
        return unknown_option(name.split("=")[0].rstrip("+"), options, command=command)
    if name := _found(r"unrecognized arguments: (\S+)", message):
        return stray_word(name)
    if name := _found(r"argument (\S+): expected one argument", message):
        return f"{name.split('/')[-1]} needs a value; one that begins with - is written --NAME=VALUE"
    if detail := _found(r"Problems parsing config: (.+)", message, flags=re.DOTALL):
        detail = re.sub(r' in "<.*?>", line', " at line", detail)
        return f"a configuration file is not valid YAML: {_short(detail, 250)}"
    if detail := _found(r"Unexpected config: (.+)", message, flags=re.DOTALL):
        return f"a configuration file contains no `name: value`, but {_short(detail)!r}"
    if (names := _found(r"^the following arguments are required: ([\w, ]+)$", message)) and "config" not in options:
        return f"missing: {', '.join('--' + name for name in names.split(', '))}; --help describes them"
    if found := re.search(
        r'key "([\w.]+)":\s+- Expected a path.*Unexpected import path format: (\w+)\(', message, flags=re.DOTALL
    ):
        return "{0}: arguments are written apart from their class: --{0} {1} --{0}.NAME VALUE".format(*found.groups())
    message = _first_reading(message)
    return _help_sentence(message) or _class_sentence(message) or _value_sentence(message) or _short(message, 350)


_INTERNAL = {"Stored"}
"""Classes created internally; hidden from lists of valid names."""


def known_subclasses(base: type) -> list[str]:
    """Names of the imported concrete subclasses of `base`, as a configuration may write them."""
    concrete = [cls for cls in _all_subclasses(base) if not inspect.isabstract(cls) and cls.__name__ not in _INTERNAL]
    return sorted({cls.__name__ for cls in concrete if not cls.__name__.startswith("_")})


def _help_sentence(message: str) -> str | None:
    """The sentence for the help of a class that does not exist or cannot be imported."""
    found = re.search(r"--([\w.]+)\.help: (.+)", message)
    if not found:
        return None
    key = ".".join(filter(None, (_key(message), found.group(1))))
    if name := _found(r"Expected a dot import path string: (\S+)", found.group(2)):
        return _unknown_class(name, key, message)
    return f"{key}.help: {_short(found.group(2), 200)}{_OWN_CLASS}"


def _class_sentence(message: str) -> str | None:
    """The sentence for an unknown class, or for unknown or missing arguments of a class."""
    if found := re.search(r"Option '([^']+)' is not accepted(?: \[(.*?)\])?", message):
        name, known = found.group(1).split(".")[0], [n for n in (found.group(2) or "").split(", ") if n]
        form = ["class_path", "init_args"] if name.startswith(("class", "init")) else []
        key, owner = _key(message, found.start()), _owner(message, found)
        if own := _own_part(name, key, owner):
            return f"{key}: {own}"
        guess = argument_meant(name, key, [*known, *form])
        return f"{key}: {owner} has no argument {name!r}{_known(known)}{guess or _takers(name, key)}"
    if found := re.search(r"the following arguments are required: (.+)", message):
        names = [n.split(".", 1)[-1] for n in found.group(1).split(". Got value")[0].split(", ")]
        key = _key(message, found.start())
        if not key:
            return f"missing: {', '.join('--' + n for n in names)}; give it in a file (--config FILE) or as an option"
        how = f"write it under init_args, or as --{key}.{names[0]} VALUE behind the class"
        return f"{key}: {_owner(message, found)} needs {' and '.join(names)}; {how}"
    if found := re.search(r"Expected an import path or a subclass spec, but got (.*?)\. Got value", message):
        return f"{_key(message)}: expected a class, its name or `class_path` with `init_args`, got {found[1]}"
    if found := re.search(r"does not correspond to a subclass of (\w+)|Expected an instantiatable class", message):
        # For alternatives, jsonargparse does not repeat the given value, but prints it once after them.
        given = (
            r"Import path (\S+) does|class, but (?!is)(\S+) is|Given value: .*?class_path='([^']+)'|Given value: (\S+)"
        )
        named = _found(given, message) or "it"
        return _unknown_class(named, _key(message, found.start()), message)
    if found := re.search(
        r"Problem with given class_path '([^']+)':\s+((?:No module|module|cannot import).+)", message
    ):
        return f"{_key(message, found.start())}: cannot import {found.group(1)} ({found.group(2)}){_OWN_CLASS}"
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    if found and not re.search(r"<class '(float|int)'>", _innermost(message)):
        return _unknown_class(found.group(1), _key(message, found.start()), message)
    return None


def _value_sentence(message: str) -> str | None:
    """The sentence that says which values are accepted."""
    inner, key = _innermost(message), _key(message)
    if sentence := _list_sentence(key, inner):
        return sentence
    value = _found(r"(?:Got|Given) value: ?(.*?)(?:\. Got value: .*)?$", inner, flags=re.MULTILINE)
    if value is None:
        value = _found(r"Not of type \w+: (\S+) does not conform|invalid literal for \w+\(\).*?: '(.*)'", inner)
    if value is None:
        value = _found(r"Unable to load config [\"'](.+?)[\"']", inner)
        return None if value is None else f"{key}: expected a mapping, `name: value`, got {_short(value)!r}"
    types = re.findall(r"Not of type (\w+)", inner)
    types += re.findall(r"Expected (?:an? )?<class '(?:\w+\.)*(\w+)'>", inner)
    if (accepted := _found(r"Not a valid subclass of (\w+)|Not a valid subclass()", inner)) is not None:
        if value.startswith("NestedArg(") and key in _ONLY_BASES:
            return _class_first(key, _imported(_ONLY_BASES[key]))
        if "str" not in types:
            return f"{key}: expected a class, its name or `class_path` with `init_args`, got {_short(value)!r}"
        types.append(f"a mapping with the arguments of {accepted}")
    choices = [c.strip("'") for names in re.findall(r"Literal\[(.*?)\]", inner) for c in names.split(", ")]
    words = [_WORDS.get(t, t) for t in dict.fromkeys(types) if not (t == "int" and ("float" in types or choices))]
    if choices:
        words.insert(0, "one of " + ", ".join(dict.fromkeys(choices)))
    if not words:
        return None
    # The value may be a number, or a class of this package that computes one.
    own = re.findall(r"<class '(lit_pref\.[\w.]+)'>", _found(r"Subtypes: \[(.*)\]", inner) or "")
    if classes := [name for path in own for name in known_subclasses(_imported(path))]:
        words.append(", ".join(classes))
        choices += classes
    infinity = "float" in types and value.strip("+-").lower() in ("inf", "infinity")
    end = (
        f"; infinity is written {'-' * value.startswith('-')}.inf"
        if infinity
        else did_you_mean(_PRECISIONS.get(value, value), choices)
    )
    return f"{key}: expected {' or '.join(words)}, got {_short(value)!r}{end}"


def _list_sentence(key: str, inner: str) -> str:
    """The sentence for something else where a list of classes is expected; empty for other mistakes."""
    base = _found(r"Subtypes: \[list\[(lit_pref\.[\w.]+)\]", inner)
    value = _found(r"^ *Given value: (.*)$", inner, flags=re.MULTILINE)
    if base is None or value is None or "Expected a <class 'list'>" not in inner:
        return ""
    known = known_subclasses(_imported(base))
    named = _found(r"'class_path': '(?:\w+\.)*(\w+)'", value) or value
    # A folder or arguments without a class are meant for the class that takes a path, if there is one.
    of_path = [name for name in known if "path" in _required(base, name)]
    name = next(iter([*nearest_names(named, known), *of_path, *known]))
    arguments = _required(base, name)
    options = "".join(f" --{key}.{argument} VALUE" for argument in arguments)
    inits = ", ".join(f"{argument}: VALUE" for argument in arguments)
    item = f"{{class_path: {name}, init_args: {{{inits}}}}}" if arguments else name
    got = f"{key}: expected a list of classes, got {_short(value)!r}{_known(known)}"
    return f"{got}; write --{key}+={name}{options}, or in a file `{key.rpartition('.')[-1]}: [{item}]`"


def _required(base: str, name: str) -> list[str]:
    """The arguments without a default of the subclass of this name."""
    (cls,) = (cls for cls in _all_subclasses(_imported(base)) if cls.__name__ == name)
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def _unknown_class(name: str, key: str, message: str) -> str:
    if key == "trainer.strategy" and (sentence := _strategy_sentence(name, message)):
        return sentence
    base = _imported(_ONLY_BASES[key]) if key in _ONLY_BASES else None
    for path in re.findall(r"[\w.]+\.\w+", _found(r"Subtypes: \[(.*)\]", _innermost(message)) or ""):
        base = _imported(path)
    if base is None:
        return f"{key}: unknown class {name!r}; give its name or its import path"
    if "." in name and name.rpartition(".")[-1] == base.__name__ and inspect.isabstract(base):
        # The user named no class, only an argument of one.
        return _class_first(key, base, "+=" if "Subtypes: [list[" in message else " ")
    known = known_subclasses(base)
    if not known:
        return f"{key}: expected the arguments of {base.__name__}, such as --{key}.NAME VALUE, got {name!r}"
    own = _OWN_CLASS if "." in name else ""
    return f"{key}: unknown class {name!r}{_known(known, name)}{did_you_mean(name, known)}{own}"


def _strategy_sentence(name: str, message: str) -> str:
    """The sentence for a strategy of Lightning's by its short name where only a class can be given; else empty."""
    registry: Any = _imported("lightning.pytorch.strategies.StrategyRegistry")
    named = dict(registry).get(name.lower(), {}).get("strategy")
    option = re.search(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)$", message, flags=re.MULTILINE)
    if option is None:
        cls = named and named.__name__
        return f"trainer.strategy: {name} is no class: write `class_path: {cls}`, or `strategy: {name}`" if cls else ""
    base = _imported("lightning.pytorch.strategies.Strategy")
    takers = {cls for cls in _all_subclasses(base) if option[1] in inspect.signature(cls).parameters}
    if named is None and not takers:
        return _class_first("trainer.strategy", base)
    choice = named.__name__ if named in takers or not takers else min(cls.__name__ for cls in takers)
    return (
        f"trainer.strategy: {name} is a name without settings; write the class and then its settings: "
        f"--trainer.strategy {choice} --trainer.strategy.{option[1]} {option[2]}"
    )


def _class_first(key: str, base: type, sign: str = " ") -> str:
    known = known_subclasses(base)
    example = "DPO" if "DPO" in known else known[0]
    return (
        f"{key}: give the class before its arguments, such as --{key}{sign}{example} and then --{key}.NAME VALUE"
        f"{_known(known)}"
    )


def _takers(name: str, key: str) -> str:
    """The end of a sentence that names the classes which take this argument."""
    if key not in _ONLY_BASES:
        return ""
    takers = [cls for cls in _all_subclasses(_imported(_ONLY_BASES[key])) if name in inspect.signature(cls).parameters]
    return f"; it is an argument of {', '.join(sorted({cls.__name__ for cls in takers})[:4])}" if takers else ""


def _own_part(name: str, key: str, owner: str) -> str:
    """The sentence for a part of objectives that one of them sets itself or does not have; empty for other names."""
    if key != "model.objective" or name not in inspect.signature(_imported(PAIRWISE)).parameters or name == "beta":
        return ""
    cls = {cls.__name__: cls for cls in _all_subclasses(_imported(_ONLY_BASES[key]))}.get(owner)
    if cls is None or nearest_names(name, inspect.signature(cls).parameters, cutoff=0.9):  # a name mistyped
        return ""
    reason = "it sets its own" if issubclass(cls, _imported(PAIRWISE)) else "it is not made of parts"
    return f"{owner} has no argument {name!r}, because {reason}: leave it out, or take DPO, which takes any {name}"


def _imported(path: str) -> type:
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _known(names: list[str], name: str = "") -> str:
    if not names:
        return ""
    if len(", ".join(names)) <= 200:
        return f"; known: {', '.join(names)}"
    near = nearest_names(name, names, most=6, cutoff=0)
    return f"; {len(names)} are known, among them {', '.join(sorted(near))}"


def _key(message: str, end: int | None = None) -> str:
    """The whole key of the error at `end`; every parser between the command line and a class adds its part."""
    return ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message[:end])))


def _owner(message: str, leaf: re.Match[str]) -> str:
    """The class whose arguments are reported; it is named before them, or after them for an optimizer."""
    before = re.findall(r"given class_path '([^']+)'", message[: leaf.start()])
    behind = re.findall(r"class_path='([^']+)'", message[leaf.end() :])
    return (before or behind or ["it"])[-1 if before else 0].rpartition(".")[-1]


def _innermost(message: str) -> str:
    """The errors of the last key, which are the lines below it with a larger indent."""
    before, _, inner = message.rpartition('Parser key "')
    line = before.rpartition("\n")[-1]
    first, *others = inner.splitlines() or [""]
    indent = len(line) - len(line.lstrip())
    below = itertools.takewhile(lambda o: not o.strip() or len(o) - len(o.lstrip()) > indent, others)
    return "\n".join([first, *below])


def _first_reading(message: str) -> str:
    """The message without its second half, which repeats the error if a value may be a class or a list."""
    first = re.search(r"\n( *)- Problem with given class_path", message)
    again = first and re.compile(rf"\n{first.group(1)}- Problem with given class_path").search(message, first.end())
    return message[: again.start()] if again else message


def _all_subclasses(base: type) -> Iterator[type]:
    subclass: type
    for subclass in base.__subclasses__():
        yield subclass
        yield from _all_subclasses(subclass)


def _found(pattern: str, message: str, flags: int = 0) -> str | None:
    match = re.search(pattern, message, flags)
    return next(group for group in match.groups() if group is not None) if match else None


def _short(text: str, limit: int = 80) -> str:
    text = " ".join(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).split())
    return text if len(text) <= limit else text[: limit - 4] + " ..."
