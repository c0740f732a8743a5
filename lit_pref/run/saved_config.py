"""The configuration that a run saves, which repeats it from any working directory."""

import copy
import glob
import os
from typing import Any

from jsonargparse import ArgumentParser, Namespace

INPUTS = ("train", "val", "path", "tokenizer", "base_model", "mapping")
"""The settings that name files and folders to read."""


def saved_text(parser: ArgumentParser, config: Namespace) -> str:
    """Return the configuration as YAML with every default, from which the run can be repeated in a new folder.

    Paths of inputs become absolute where they exist, so that another working directory reads the same ones.
    """
    saved: Namespace = copy.deepcopy(config)
    saved.run_dir = saved.ckpt_path = None
    for part in (saved.model, saved.data):
        _make_absolute(part)
    text: str = parser.dump(saved, skip_unset=False)
    return text


def _make_absolute(part: Any, key: str = "") -> Any:
    if isinstance(part, str):
        path = os.path.expanduser(part)
        is_input = key in INPUTS and (key != "mapping" or part.endswith((".yaml", ".yml")))
        return os.path.abspath(path) if is_input and (os.path.exists(path) or glob.glob(path)) else part
    if isinstance(part, list):
        return [_make_absolute(one, key) for one in part]
    if isinstance(part, Namespace | dict):
        items = part if isinstance(part, dict) else vars(part)
        for name, value in items.items():
            items[name] = _make_absolute(value, name)
    return part
