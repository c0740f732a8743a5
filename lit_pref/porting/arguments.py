"""Reads the arguments of a TRL configuration from a command line, from Python code, or from a YAML file."""

import ast
from pathlib import Path
from typing import Any

import yaml

from lit_pref.errors import UsageError, UserError
from lit_pref.hints import nearest_names

TRAINERS = {"DPOConfig": "dpo", "CPOConfig": "cpo", "ORPOConfig": "orpo", "RewardConfig": "reward"}
"""The configurations of TRL that have a counterpart, with the name of their trainer."""

WORDS = {"true": True, "false": False, "null": None, "none": None}
"""YAML words that are not Python literals."""


def arguments_of(text: str) -> tuple[str, dict[str, Any]]:
    """Return the trainer and its arguments.

    >>> arguments_of("loss_type=ipo,beta=0.1")
    ('dpo', {'loss_type': 'ipo', 'beta': 0.1})
    >>> arguments_of('CPOConfig(loss_type="simpo", simpo_gamma=0.3)')
    ('cpo', {'loss_type': 'simpo', 'simpo_gamma': 0.3})

    Args:
        text: NAME=VALUE,NAME=VALUE with `trainer=NAME` among them where it is not DPO's; a call of a configuration; or
            the path of a YAML file of arguments.

    Raises:
        UsageError: it is none of them, or has an unknown trainer.
        UserError: the file is not a mapping.
    """
    if is_file(text):
        return _trainer_of(_read(Path(text)))
    is_call = text.rstrip().endswith(")") and "(" in text.partition("=")[0]
    source = text.strip() if is_call else f"DPOConfig({text})"
    try:
        call = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise UsageError(_how(text)) from error
    if not (isinstance(call, ast.Call) and not call.args and all(keyword.arg for keyword in call.keywords)):
        raise UsageError(_how(text))
    given = {str(keyword.arg): _value(keyword.value, source) for keyword in call.keywords}
    name = ast.unparse(call.func).rpartition(".")[2]
    if is_call and name not in TRAINERS:
        near = nearest_names(name.replace("Trainer", "Config"), TRAINERS, cutoff=0.85)
        meant = f"; did you mean {near[0]}?" if near else ": only trainers of pairs have a counterpart here"
        raise UsageError(f"--from_trl: {name} is none of {', '.join(TRAINERS)}{meant}")
    return _trainer_of({"trainer": TRAINERS[name], **given} if is_call else given)


def is_file(text: str) -> bool:
    """Whether the text is the path of a file of arguments."""
    return text.endswith((".yaml", ".yml", ".json"))


def _how(text: str) -> str:
    return (
        f"--from_trl {text!r} cannot be read: write NAME=VALUE,NAME=VALUE with paths and other texts in quotes, a call "
        "such as 'DPOConfig(beta=0.1)', or the path of a YAML file"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--from_trl {path}: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"--from_trl {path} is not a mapping of arguments to values")
    return {str(name): value for name, value in given.items()}


def _value(node: ast.expr, source: str) -> Any:
    """The value of an expression: a literal, a list of such, or a word, which stands for itself."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element, source) for element in node.elts]
    if isinstance(node, ast.Name):
        return WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.get_source_segment(source, node)


def _trainer_of(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The trainer that the arguments name, or that alone has one of them; and the other arguments."""
    rest = {name: value for name, value in given.items() if name != "trainer"}
    if "trainer" in given:
        name = str(given["trainer"]).lower().removesuffix("trainer").removesuffix("config")
        if name not in TRAINERS.values():
            known = ", ".join(TRAINERS.values())
            raise UsageError(f"--from_trl: trainer {given['trainer']!r} is none of {known}")
        return name, rest
    if {"cpo_alpha", "simpo_gamma"} & rest.keys() or rest.get("loss_type") in ("simpo", "alphapo"):
        return "cpo", rest
    return ("reward" if "center_rewards_coefficient" in rest else "dpo"), rest
