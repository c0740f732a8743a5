"""The names that the package exports, and when they are imported."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import lit_pref
from lit_pref import objectives
from lit_pref.objectives.base import Objective
from lit_pref.parse_errors import known_subclasses


def test_every_objective_and_reference_is_exported():
    shipped = {name for name in known_subclasses(Objective) if hasattr(objectives, name)}
    assert {"DPO", "MMPO", "SFT"} <= shipped
    for name in shipped:
        assert getattr(lit_pref, name) is getattr(objectives, name)
    references = {"InitialPolicy", "AdapterOff", "Pretrained", "MovingReference"}
    assert references | shipped <= set(dir(lit_pref))


def test_what_type_checkers_are_told_is_there():
    stub = (ROOT / "lit_pref" / "__init__.pyi").read_text()
    names = re.findall(r"^from (\S+) import (\w+) as \2$", stub, flags=re.MULTILINE)
    assert {name for _, name in names} == {name for name in dir(lit_pref) if not name.startswith("_")}
    for module, name in names:
        assert getattr(lit_pref, name) is getattr(sys.modules[module], name)
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert package_data["lit_pref"] == ["py.typed", "*.pyi"] and (ROOT / "lit_pref" / "py.typed").exists()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="module 'lit_pref' has no attribute 'MMOP'; did you mean MMPO"):
        _ = lit_pref.MMOP
    with pytest.raises(ImportError):
        exec("from lit_pref import NoSuchThing")


def test_the_package_and_its_list_of_names_import_nothing_heavy():
    code = "import sys, lit_pref\nprint(len(dir(lit_pref)), hasattr(lit_pref, 'MMOP'))\n"
    code += "print({'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
