"""Mistakes in the text of configuration files, found with file and line before anything heavy is imported."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean

SECTIONS = ("trainer", "model", "data", "testbed")
CLASSES = {
    "objective": "name one, such as DPO, MMPO or SFT",
    "optimizer": "name one, such as AdamW, or leave it out",
}
"""The settings of `model` that must name a class, and what to write."""
OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}
REMEDIES = {
    "mapping values are not allowed": "indent the keys of one mapping equally, and quote a text that contains a colon",
    "could not find expected ':'": "a colon is missing, `name: value`",
    "expected ',' or": "a bracket or brace is not closed, or a comma is missing",
    "expected <block end>": "indent the keys of one mapping equally",
    "expected the node content": "a value is missing, or a text that begins with a sign must be quoted",
    "quoted scalar": "a quotation mark is not closed",
    "cannot start any token": "quote a text that begins with this character",
    "undefined alias": "quote a text that begins with *",
}
"""What is usually wrong where the YAML parser reports this."""


def refuse_mistakes(configs: Iterable[str]) -> None:
    """Refuse configuration files that YAML or the parser would misread.

    These are a file that does not exist, is empty or is not valid YAML, a key that is given twice, arguments beside
    `class_path` instead of under `init_args`, and `None` in place of `null`.

    Args:
        configs: their paths, or texts, which are left to the parser.

    Raises:
        UsageError: there is a mistake; the message says where and how to fix it.
    """
    for config in configs:
        path = Path(config)
        if "\n" in config or ":" in config.partition(" ")[0].rpartition("/")[-1]:
            continue  # a configuration given as text
        if path.is_dir():
            raise UsageError(f"config file {path} is a folder{did_you_mean('config.yaml', _names_in(path))}")
        if not path.exists():
            raise UsageError(f"config file {path} does not exist{did_you_mean(path.name, _names_in(path.parent))}")
        root = _composed(path)
        if not isinstance(root, MappingNode):
            raise UsageError(
                f"{path} is empty: write settings into it, such as `data: {{train: pairs.jsonl}}`, or leave it out"
                if root is None or not root.value
                else f"{path}, line 1: the file contains no `name: value`, but {root.value!r:.80}"
            )
        _refuse_sections(path, root)
        for node in _nodes(root):
            _refuse_in(path, node)


def place_of(key: str, leaf: str | None, configs: Sequence[str], options: Iterable[str]) -> str:
    """The place of a key that an error names, as the beginning of a sentence; empty if no file contains it.

    Args:
        key: with dots, without `init_args`.
        leaf: a faulty name below the key.
        configs: the configuration files; the last one that contains the key is named.
        options: names of the options on the command line; what they set is not looked for in the files.
    """
    if any(f"{option}.".startswith(f"{key}.") or f"{key}.".startswith(f"{option}.") for option in options):
        return ""
    for config in reversed(configs):
        if "\n" in config:
            continue  # a configuration given as text
        if not Path(config).is_file() or not isinstance(root := _composed(Path(config)), MappingNode):
            continue
        node, line = root, 1
        for part in key.split("."):
            if (found := next(_below(node, part), None)) is None:
                break
            node, line = found[1], found[0].start_mark.line + 1
        else:
            inner = next((name for name, _ in _anywhere(node) if leaf is not None and name.value == leaf), None)
            return f"{config}, line {line if inner is None else inner.start_mark.line + 1}: "
    return ""


def place_of_message(message: str, configs: Sequence[str], options: Iterable[str]) -> str:
    """The place of the setting that an error's sentence begins with, as `place_of` returns it.

    Sentences begin with a key (`data.seed is -1`), with a class and its argument (`DPO: beta must be`), or with a name
    of Lightning's in backticks.
    """
    options = list(options)
    if found := re.match(
        r"((?:model|policy|data|trainer|testbed)\.[\w.]+?|unknown key '([\w.]+)'(?= in ))(?:[:\s;,]|$)", message
    ):
        key = re.sub(r"\.(class_path|init_args)\b", "", found[2] or found[1])
        key = f"model.{key}" if key.startswith("policy.") else key
        leaf = re.search(r"has no argument '(\w+)'", message)
        return place_of(key, leaf and leaf[1], configs, options)
    if found := re.match(r"`(\w+)` ", message):
        return place_of(f"trainer.{found[1]}", None, configs, options)
    found = re.match(r"(\w+): (\w+) ", message)
    if found is None or any(option.rpartition(".")[-1] == found[2] for option in options):
        return ""
    for config in reversed(configs):
        root = _composed(Path(config)) if Path(config).is_file() else None
        for node in _nodes(root) if root is not None else ():
            values = {key.value: value for key, value in node.value} if isinstance(node, MappingNode) else {}
            if "class_path" in values and str(values["class_path"].value).rpartition(".")[-1] == found[1]:
                for name, _ in _below(node, found[2]):
                    return f"{config}, line {name.start_mark.line + 1}: "
    return place_of(f"model.{found[1]}.{found[2]}", None, configs, options)  # as in `schedule: warmup is`


def _composed(path: Path) -> Node | None:
    """The nodes of a file, with their places; aliases are not expanded."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path} cannot be read ({error}); it must be UTF-8 text") from error
    except yaml.reader.ReaderError as error:
        raise UsageError(f"config file {path} contains a character that YAML forbids ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        raise UsageError(_syntax_sentence(path, text, error)) from error


def _syntax_sentence(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error.context).split())
    unfinished = error.context_mark is not None and re.search(
        "could not find expected ':'|',' or|quoted scalar", f"{problem} {error.context}"
    )
    mark = error.context_mark if unfinished else error.problem_mark
    assert mark is not None
    place = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place}: not valid YAML: the line is indented with a tab; indent with spaces"
    remedy = next((f": {words}" for sign, words in REMEDIES.items() if sign in f"{problem} {error.context}"), "")
    return f"{place}: not valid YAML ({problem}){remedy}"


def _refuse_sections(path: Path, root: MappingNode) -> None:
    for name, node in root.value:
        if name.value in SECTIONS:
            _refuse_section(path, name.value, name, node)
        for inner, value in node.value if name.value == "model" and isinstance(node, MappingNode) else ():
            if inner.value == "policy":
                _refuse_section(path, "model.policy", inner, value)
            elif inner.value in CLASSES and (_is_null(value) or isinstance(value, SequenceNode)):
                raise UsageError(
                    f"{path}, line {inner.start_mark.line + 1}: model.{inner.value}: expected a class, got "
                    f"{_kind(value)}; {CLASSES[inner.value]}"
                )


def _refuse_section(path: Path, key: str, name: Node, node: Node) -> None:
    if isinstance(node, MappingNode) or (key == "testbed" and _is_null(node)):
        return
    text = node.value if isinstance(node, ScalarNode) and not _is_null(node) else None
    if text is not None and Path(text).is_file():
        return
    meant = re.fullmatch(r"(\w+)[: ]\s*(\S.*)", text or "")
    if meant:
        remedy = f"write `{meant[1]}: {meant[2]}`, with a colon and a space"
    elif key == "model.policy" and text is not None:
        remedy = f"a model is named by its path: `policy: {{path: {text}}}`"
    else:
        remedy = f"write settings below `{key.rpartition('.')[-1]}:`, indented, or leave it out"
    # A text stands where the mistake is; for an empty value that is the line of its name.
    line = (name if text is None else node).start_mark.line + 1
    got = _kind(node) if text is None else f"{text!r:.80}"
    raise UsageError(f"{path}, line {line}: {key}: expected a mapping, `name: value`, got {got}; {remedy}")


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag.endswith(":null")


def _kind(node: Node) -> str:
    return "nothing (null)" if _is_null(node) else "a list" if isinstance(node, SequenceNode) else f"{node.value!r:.80}"


def _refuse_in(path: Path, node: Node) -> None:
    if isinstance(node, ScalarNode):
        if node.value == "None" and node.style is None:
            raise UsageError(
                f"{path}, line {node.start_mark.line + 1}: None is a text in YAML; write null for nothing, or 'None' "
                "in quotes for the text"
            )
        return
    if not isinstance(node, MappingNode):
        return
    lines: dict[str, int] = {}
    for name, _ in node.value:
        line = name.start_mark.line + 1
        if name.value in lines and name.value != "<<":
            raise UsageError(
                f"{path}, line {line}: `{name.value}` is given already in line {lines[name.value]}, and YAML keeps "
                "only the last one; merge them into one"
            )
        lines[str(name.value)] = line
    for name, value in node.value:
        if name.value == "init_args" and not isinstance(value, MappingNode):
            raise UsageError(
                f"{path}, line {name.start_mark.line + 1}: init_args: expected a mapping of arguments, `name: value`, "
                f"got {_kind(value)}; write arguments below it, indented, or leave it out"
            )
        if name.value == "class_path" and (not isinstance(value, ScalarNode) or _is_null(value)):
            raise UsageError(
                f"{path}, line {name.start_mark.line + 1}: class_path: expected the name of a class, got {_kind(value)}"
            )
    if "class_path" in lines and (beside := [name for name in lines if name not in OF_A_CLASS]):
        values = {str(name.value): value for name, value in node.value}
        names = ", ".join(f"{name}: {_shown(values[name])}" for name in beside)
        raise UsageError(
            f"{path}, line {lines[beside[0]]}: `{beside[0]}` stands beside `class_path`; the arguments of a class "
            f"belong under `init_args`: {{class_path: {values['class_path'].value}, init_args: {{{names}}}}}"
        )


def _shown(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) and len(node.value) < 40 else "..."


def _nodes(root: Node) -> Iterator[Node]:
    """Every node once, however often aliases repeat it."""
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, MappingNode):
            pending += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, SequenceNode):
            pending += reversed(node.value)


def _anywhere(root: Node) -> Iterator[tuple[Node, Node]]:
    for node in _nodes(root):
        if isinstance(node, MappingNode):
            yield from node.value


def _below(node: Node, name: str) -> Iterator[tuple[Node, Node]]:
    """The keys of this name directly below a node, or below its `init_args` or the items of its list."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _below(item, name)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == name:
                yield key, value
            elif key.value == "init_args":
                yield from _below(value, name)


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
