"""Texts of `objectives`: the list by family, and one objective in detail with YAML to copy."""

import inspect
import textwrap
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

import lit_pref
from lit_pref import describing
from lit_pref.errors import UsageError
from lit_pref.objectives.base import Objective
from lit_pref.objectives.component import Component
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.parts.part import Part
from lit_pref.porting.losses import trl_names

KINDS = {
    "reference": "one reference score out of K",
    "temperature": "beta of each pair",
    "target": "the probability that the chosen response is better",
    "link": "the loss of a logit",
    "tokens": "how log-probs of tokens become the score of a response",
    "score": "a function of the log-ratio",
    "offset": "what is subtracted from the logit",
    "weight": "a factor of the loss",
    "terms": "a further loss",
}
"""The kinds of parts, with what each of them decides."""

CONFIGS = Path(lit_pref.__file__).parents[1] / "configs"
"""The shipped configurations; an installed wheel has none."""


def listed(classes: list[type[Objective]]) -> str:
    """Return objectives by family: name and purpose; then source, how it was checked, and what it needs."""
    lines: list[str] = []
    for family, members in groupby(classes, key=lambda cls: cls.family):
        lines += ["", family]
        for cls in members:
            about = describing.docstring(cls)
            facts = [describing.origin(about.source), describing.CHECKED[cls.faithfulness]]
            facts += [f"needs {needs}" if (needs := describing.needs_in_words(cls)) else "no reference"]
            facts += [f"TRL's {', '.join(names)}"] if (names := trl_names(cls.__name__)) else []
            lines += [f"  {cls.__name__:<20}{about.summary}", f"  {'':<20}{' · '.join(filter(None, facts))}"]
    return "\n".join(lines[1:])


def explained(cls: type[Objective]) -> str:
    """Return everything about an objective that its user needs to know."""
    about = describing.docstring(cls)
    parts, names = describing.open_parts(cls), trl_names(cls.__name__)
    blocks = [
        f"{cls.__name__} · {cls.family} · {describing.CHECKED[cls.faithfulness]}",
        about.body,
        _hanging("When", about.when),
        _hanging("Source", about.source),
        _hanging("Needs", describing.needs_in_words(cls) or "nothing but pairs"),
        _hanging("Code", describing.file_of(cls)),
        "\n".join(["Arguments", *map(_argument, describing.arguments(cls))]),
        f"Parts that can be chosen: {', '.join(parts)}; docs/methods.md lists their classes" if parts else "",
        f"In TRL: {', '.join(names)}" if names else "",
        yaml_to_copy(cls),
    ]
    return "\n\n".join(block for block in blocks if block)


def explained_part(cls: type[Part], kind: str) -> str:
    """Return everything about a part of objectives that its user needs to know.

    Args:
        cls: the class of the part.
        kind: what it is of an objective, such as `target` or `terms`.
    """
    about, arguments = describing.docstring(cls), describing.arguments(cls)
    option = f"--model.objective.{kind}{'+=' if kind == 'terms' else ' '}{cls.__name__}"
    blocks = [
        f"{cls.__name__} · a part of objectives ({kind}): {KINDS[kind]}",
        about.body,
        _hanging("Source", about.source) if about.source else "",
        _hanging("Needs", describing.needs_in_words(cls) or "nothing but pairs"),
        _hanging("Code", describing.file_of(cls)),
        "\n".join(["Arguments", *map(_argument, arguments)]) if arguments else "It has no arguments.",
        f"As options: --model.objective DPO {option}; docs/methods.md has what it combines with",
        _part_to_copy(cls, kind),
    ]
    return "\n\n".join(block for block in blocks if block)


def _part_to_copy(cls: type[Part], kind: str) -> str:
    """DPO with this part as YAML, and what that combination is refused for, if it is."""
    part = describing.example(cls)
    init = {argument.name: value_of(part, argument) for argument in describing.arguments(cls)}
    init = {name: value for name, value in init.items() if value is not None}
    spec: Any = {"class_path": cls.__name__, "init_args": init} if init else cls.__name__
    objective = {"class_path": "DPO", "init_args": {kind: [spec] if kind == "terms" else spec}}
    refused = ""
    arguments: dict[str, Any] = {kind: [part] if kind == "terms" else part}
    try:
        with warnings.catch_warnings(action="ignore"):
            DPO(**arguments)
    except UsageError as error:
        refused = "\n" + _hanging("Note", f"it needs other parts beside it: {error}")
    return f"YAML to copy\n\n{yaml.safe_dump({'model': {'objective': objective}}, sort_keys=False)}{refused}".rstrip()


def _hanging(name: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"{name:<8}", subsequent_indent=" " * 8, break_on_hyphens=False)


def _argument(argument: describing.Argument) -> str:
    default = "required" if argument.default is inspect.Parameter.empty else shown(argument.default)
    line = f"  {argument.name:<12} {default:<10} {argument.meaning}"
    return textwrap.fill(line, 110, subsequent_indent=" " * 26, break_on_hyphens=False)


def shown(default: Any) -> str:
    """Return a default as YAML has it."""
    return yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def yaml_to_copy(cls: type[Objective]) -> str:
    """Return the shipped configuration of an objective, or one that follows from its arguments."""
    papers = [path for path in sorted((CONFIGS / "papers").glob("*.yaml")) if trains(path) == cls.__name__]
    published = [f"The paper's settings: configs/papers/{path.name}" for path in papers]
    for folder in (CONFIGS, CONFIGS / "reward"):
        path = folder / f"{cls.__module__.rpartition('.')[2]}.yaml"
        if path.is_file() and trains(path) == cls.__name__:
            name = path.relative_to(CONFIGS.parent)
            return "\n".join(
                [
                    *published,
                    f"YAML to copy ({name}; it also sets optimizer, schedule and batch)",
                    "",
                    path.read_text(encoding="utf-8").rstrip(),
                ]
            )
    return "\n".join([*published, "YAML to copy", "", generated(cls).rstrip()])


def trains(path: Path) -> str:
    """Return the class of the objective in a configuration."""
    objective = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {}).get("objective", "")
    return str(objective if isinstance(objective, str) else objective.get("class_path", ""))


def generated(cls: type[Objective]) -> str:
    """Return a configuration of the class: its defaults, and an example value for each required argument."""
    objective = describing.example(cls)
    asked = objective.requirements
    values = {argument.name: value_of(objective, argument) for argument in describing.arguments(cls)}
    values = {name: value for name, value in values.items() if value is not None}
    spec = {"class_path": cls.__name__, **({"init_args": values} if values else {})}
    of_rewards = "reward_model" in describing.needs(cls, asked)
    model: dict[str, Any] = {"policy": {"path": "FOLDER", **({"head": "scalar"} if of_rewards else {})}}
    model["objective"] = spec
    if asked.min_references > 1 or asked.max_references is None:
        others = [{"class_path": "Pretrained", "init_args": {"path": "OTHER_FOLDER"}}]
        model["references"] = [{"class_path": "InitialPolicy"}, *others * max(1, asked.min_references - 1)]
    return yaml.safe_dump(
        {"model": model, "data": {"train": "lists.jsonl" if asked.lists else "pairs.jsonl"}}, sort_keys=False
    )


def value_of(component: Component, argument: describing.Argument) -> Any:
    """Return an argument's value as YAML has it; None for its absence, which null means as well."""
    value = component.arguments.get(argument.name)
    return None if isinstance(value, Component) else value
