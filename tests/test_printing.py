"""One function prints everything, and no text that a file or model gives reaches the terminal raw."""

import ast

import pytest
from conftest import ROOT
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_pref.models.loading import refuse_lost_heads
from lit_pref.printing import say


def test_nothing_but_say_calls_print():
    calls = {
        str(path.relative_to(ROOT / "lit_pref"))
        for path in (ROOT / "lit_pref").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    # Progress moves the cursor of the terminal itself.
    assert calls == {"generating/progress.py", "printing.py"}


def test_control_characters_are_printed_as_signs(capsys: pytest.CaptureFixture[str]):
    say("train \x1b]0;title\x07.jsonl")
    say("lit_pref: \x1b[2J", error=True)
    assert capsys.readouterr() == ("train ␛]0;title␇.jsonl\n", "lit_pref: ␛[2J\n")


def test_only_the_first_rank_prints_but_every_rank_reports_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    say("policy      here")
    say("lit_pref: the first rank is gone", error=True)
    assert capsys.readouterr() == ("", "lit_pref: the first rank is gone\n")


def test_a_warning_quotes_names_of_weights_as_signs():
    with pytest.warns(UserWarning, match="␛") as caught:
        refuse_lost_heads("model", ["\x1b]0;x\x07.weight"])
    assert "\x1b" not in str(caught[0].message)
