"""Everything that is printed passes through `errors.say`, so that data cannot command the terminal or stop a run."""

import ast

import pytest
from conftest import ROOT

from lit_pref.errors import UserError, say, visible
from lit_pref.modules import distributed

ALLOWED = {"errors.py": 1, "__main__.py": 2}
"""The printer itself; the help of the program, and the error, which goes to stderr."""


def test_nothing_in_the_package_prints_past_say():
    printing: dict[str, int] = {}
    for path in sorted((ROOT / "lit_pref").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                name = path.relative_to(ROOT / "lit_pref").as_posix()
                printing[name] = printing.get(name, 0) + 1
    assert printing == ALLOWED


def test_control_characters_and_half_surrogates_are_printed_as_signs(capsys: pytest.CaptureFixture[str]):
    for printer in (say, distributed.say):
        printer("a\x1b[2Jb\ud800")
        assert capsys.readouterr().out == "a␛[2Jb\\ud800\n"
    assert visible("\ud800") == "\\ud800" == str(UserError("\ud800"))
