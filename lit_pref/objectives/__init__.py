"""Objectives: scores in, unreduced losses out. One paper a file; a new file here needs no other edit.

Every module is imported, because a class can be named by its short name in a configuration only once it is.
"""

import importlib
import pkgutil

from torch import nn

from lit_pref.objectives.base import Objective as Objective
from lit_pref.objectives.pairwise import Pairwise as Pairwise

for _found in pkgutil.walk_packages(__path__, __name__ + "."):
    _module = importlib.import_module(_found.name)
    globals().update(
        {
            name: value
            for name, value in vars(_module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == _found.name
        }
    )
