"""Objectives: scores in, unreduced losses out. One paper per file; a new file here needs no other edit.

All modules are imported, because a configuration can use a class's short name only after its module is imported.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from torch import nn

from lit_pref.objectives.base import Objective as Objective
from lit_pref.objectives.pairwise import Pairwise as Pairwise
from lit_pref.objectives.requirements import Requirements as Requirements


def classes_by_name(modules: Iterable[ModuleType]) -> dict[str, type]:
    """Return the objectives and parts that `modules` define, by the short names that configurations use.

    Raises:
        ImportError: two classes have one short name, or a class has the name of something else in this package.
    """
    found: dict[str, type] = {}
    for module in modules:
        for name, value in vars(module).items():
            if not (isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__):
                continue
            other = found.setdefault(name, value)
            taken = globals().get(name, value)
            if other is not value or taken is not value:
                first = other if other is not value else taken
                names = [f"{getattr(c, '__module__', __name__)}.{name}" for c in (first, value)]
                raise ImportError(
                    f"two classes are called {name}: {' and '.join(names)}. A configuration names a class by its "
                    "short name, so rename one of them."
                )
    return found


globals().update(
    classes_by_name(importlib.import_module(found.name) for found in pkgutil.walk_packages(__path__, __name__ + "."))
)
