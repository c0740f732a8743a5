"""Every published setting of a paper is built and takes a step: its objective, its optimizer, its schedule."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from lit_pref import objectives
from lit_pref.run.config import module_of, resolve, run_parser
from lit_pref.scores import TokenLogps

CONFIGS = sorted((ROOT / "configs" / "papers").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_comment_says_what_is_published_and_what_is_not(config: Path):
    comment = "\n".join(line for line in config.read_text().splitlines() if line.startswith("#"))
    assert re.match(r"# .+, arXiv \d{4}\.\d{5}", comment)
    assert "# Source: " in comment and "Deviations: " in comment
    assert "# Our own choices, not from paper or code: " in comment


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_step_is_taken(config: Path, make: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    name = yaml.safe_load(config.read_text())["model"]["objective"]["class_path"]
    if not hasattr(objectives, name):
        pytest.skip(f"the package has no {name}")
    parsed = resolve(["--config", str(config)])
    built: Any = run_parser(module=module_of(parsed)).instantiate(parsed).model
    objective = built.objective
    inputs = make.random(objective, size=4, references=max(1, len(getattr(built, "references", [])) or 1))
    inputs.references = inputs.references[: objective.requirements.max_references]
    scores = inputs.policy.chosen
    of_tokens = TokenLogps() in scores.statistics
    chosen = torch.nn.Parameter((scores.statistics[TokenLogps()] if of_tokens else scores.scores).detach())
    if of_tokens:
        scores.statistics[TokenLogps()] = chosen
    else:
        scores.scores = chosen
    before = chosen.detach().clone()
    loss = inputs.into(objective).losses.mean()
    loss.backward()
    built.optimizer([chosen]).step()
    assert loss.isfinite() and bool(chosen.isfinite().all()) and not torch.equal(chosen, before)
    factors = [built.schedule.factor(step, 1000) for step in (0, 500)]
    assert all(0 <= factor <= 1 and math.isfinite(factor) for factor in factors) and max(factors) > 0
