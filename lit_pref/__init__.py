"""Preference optimisation of language models in PyTorch Lightning.

`import lit_pref` itself is fast, because the module of a class is imported at its first use: `from lit_pref import
DPO`.
"""

import functools as _functools
import importlib as _importlib
import re as _re
from pathlib import Path as _Path
from typing import Any as _Any

_SOURCES = (
    "run/run.py",
    "modules/preference.py",
    "modules/schedules.py",
    "data/datamodule.py",
    "data/sources/source.py",
    "data/selection/criteria.py",
    "data/selection/selection.py",
    "models/spec.py",
    "models/lora.py",
    "references/pretrained.py",
    "references/reference.py",
    "references/moving.py",
    "objectives/**/*.py",
    "callbacks/checkpointing.py",
    "errors.py",
)
"""Files whose public classes can be imported from the package itself; `build` and `export` are its two functions."""


@_functools.cache
def _homes() -> dict[str, str]:
    """The module of every public name, read from the files, so that a new objective need not be registered."""
    root = _Path(__file__).parent
    homes = {"build": "lit_pref.run", "export": "lit_pref.run.export"}
    for pattern in _SOURCES:
        for path in sorted(root.glob(pattern)):
            module = ".".join(["lit_pref", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
            for name in _re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), flags=_re.MULTILINE):
                homes.setdefault(name, module)
    return homes


def __getattr__(name: str) -> _Any:
    if not name.startswith("_") and name in _homes():
        return getattr(_importlib.import_module(_homes()[name]), name)
    hint = ""
    if not name.startswith("_"):
        from lit_pref.hints import did_you_mean

        hint = did_you_mean(name, _homes())
    raise AttributeError(f"module 'lit_pref' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_homes()})
