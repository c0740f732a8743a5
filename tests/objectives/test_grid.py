"""The grid of parts: each cell gives finite losses and gradients, or is refused for a reason in the table of rules.

The parts are found from their classes. What is valid is decided here once more, by properties of the parts, measured
where numbers can show them, and not by the flags that the package compares.
"""

import functools
import inspect
import itertools
import math
import operator
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from lit_pref.describing import required_arguments
from lit_pref.objectives import DPO, Requirements
from lit_pref.objectives.parts.part import Part
from lit_pref.scores import COMPARING_NEEDS

sys.path.append(str(ROOT / "tools"))
from part_combinations import Cell, build, choices, count, pairs, product, refusal, representatives

RANDOM_CELLS = 1_000


def normal(seed: int = 0) -> Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Properties of one part, measured


def of_references(reference, make):
    """Whether others than the first reference are clipped: the first one bounds what they can change."""
    number = reference.requirements.max_references
    others = [(-20 - normal(k).abs(), -30 - normal(9 + k).abs()) for k in range(2 if number is None else number - 1)]
    first, mixed = (torch.full((5,), -20.0).double(), torch.full((5,), -30.0).double()), []
    for factor in (1, 1000) if others else ():
        far = [(factor * chosen, factor * rejected) for chosen, rejected in others]
        mixed.append(reference([first, *far], first)[0][0])
    return {"clips": bool(mixed) and bool((mixed[1] - mixed[0]).abs().max() < 20)}


def of_temperature(temperature, make):
    objective = DPO(temperature=temperature)
    beta = make.random(objective).into(objective).logged["beta"]
    needs = temperature.requirements.statistics
    return {
        "varies": bool((beta != objective.beta).any()),
        "tilts": any(isinstance(need, COMPARING_NEEDS) for need in needs),
    }


def of_target(target, make):
    inputs = make.random(DPO(target=target))
    p = target(inputs.policy, inputs.pairs)
    return {"is_one": bool((p == 1).all()), "is_probability": bool(((p >= 0) & (p <= 1)).all())}


def of_link(link, make):
    p, beta = torch.full((5,), 1 - 1e-6, dtype=torch.float64), torch.full((5,), 0.1, dtype=torch.float64)
    jump = link(normal(), torch.ones_like(p), beta) - link(normal(), p, beta)
    return {
        "reads_beta": not torch.equal(link(normal(), p, beta), link(normal(), p, 2 * beta)),
        "infinite_at_one": bool(jump.max() > 1),
        "reads_target": not torch.equal(link(normal(), p, beta), link(normal(), p / 2, beta)),
    }


def of_tokens(tokens, make):
    inputs = make.random(DPO(tokens=tokens))
    found, chosen = tokens(inputs.policy, inputs.policy, inputs.pairs)[0], inputs.policy.chosen
    return {"is_sum": torch.equal(found, chosen.scores), "is_mean": torch.equal(found, chosen.scores / chosen.lengths)}


def of_score(score, make):
    first, second = -normal().abs(), -normal(1).abs()
    both = score((first, second))
    above, far_above = score((-first, -second)), score((-2 * first, -2 * second))
    swapped = [(score((k * first, k * second)), score((k * second, k * first))) for k in (1, -1, 1e4, -1e4)]
    return {
        # A log-prob is never above 0, where such a function is cut.
        "of_log_prob": all(torch.equal(a, b) for a, b in zip(above, far_above, strict=True)),
        "needs_ratio": score.needs_ratio,  # what a number means cannot be measured
        "is_ratio": torch.equal(both[0], first) or torch.equal(both[1], second),
        "is_fair": all(torch.equal(a[0], b[1]) and torch.equal(a[1], b[0]) for a, b in swapped),
    }


def of_terms(term, make):
    """Whether sums of log-probs are compared: both of them raised change nothing, the chosen one alone does."""
    inputs = make.random(DPO(terms=[term]))
    policy, beta = inputs.policy, torch.ones(5, dtype=torch.float64)

    def value(*raised):
        for side in raised:
            side.scores = side.scores.detach() + 1
        return term(beta, (normal(), normal(1)), policy, inputs.references, inputs.pairs)

    if policy.extra_response is None:
        return {"contrasts": False}
    first, both, one = value(), value(policy.chosen, policy.extra_response), value(policy.chosen)
    return {"contrasts": torch.allclose(first, both, atol=1e-9) and not torch.allclose(both, one, atol=1e-3)}


MEASURED: dict[str, Callable[[Any, Any], dict[str, bool]]] = {
    "reference": of_references,
    "temperature": of_temperature,
    "target": of_target,
    "link": of_link,
    "tokens": of_tokens,
    "score": of_score,
    "terms": of_terms,
}

RULES: dict[str, Callable[[Any], bool]] = {
    "a part needs more references than another takes": lambda c: c.fewest > c.most,
    "a ratio has no reference": lambda c: c.most == 0 and c.needs_ratio,
    "odds of a mean log-prob": lambda c: c.of_log_prob and (c.most != 0 or not c.is_mean),
    "distributions are compared in sums": lambda c: c.compares and not c.is_sum,
    "a tilted policy has the reverse KL": lambda c: c.tilts and not c.is_ratio,
    "a clipped mixture is of sums": lambda c: c.clips and not c.is_sum,
    "a contrast of prompts is of sums": lambda c: c.contrasts and not c.is_sum,
    "a link that divides by beta has one beta": lambda c: c.reads_beta and c.varies,
    "a soft target treats both sides alike": lambda c: not c.is_fair and not c.is_one,
    "a link that reads no target has the target 1": lambda c: not c.reads_target and not c.is_one,
    "a link that is infinite at 1 has a probability below": lambda c: (
        c.infinite_at_one and (c.is_one or not c.is_probability)
    ),
}
"""The reasons to refuse a cell; no other is allowed."""


@functools.cache
def part_of(cls: type) -> Part:
    """The part with its defaults; infinite ones, which switch something off, are 1."""
    given = {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()}
    return cls(**required_arguments(cls), **{name: 1.0 for name, value in given.items() if value == math.inf})


@pytest.fixture
def broken_rules(make):
    """Returns the rules that a cell breaks."""
    known: dict[type, dict[str, bool]] = {}

    def measured(kind: str, cls: type) -> dict[str, bool]:
        if cls not in known:
            known[cls] = MEASURED[kind](part_of(cls), make) if kind in MEASURED else {}
        return known[cls]

    def broken(cell: Cell) -> list[str]:
        whole = {kind: classes[0] for kind, classes in choices().items()} | cell
        parts = {kind: part_of(cls) for kind, cls in whole.items() if cls is not None}
        asked = [
            module.requirements for part in parts.values() for module in part.modules() if isinstance(module, Part)
        ]
        facts = {"contrasts": False}  # of a cell without terms
        for kind, part in parts.items():
            facts |= measured(kind, type(part))
        fewest = max(one.min_references for one in asked)
        most = min(99 if one.max_references is None else one.max_references for one in asked)
        compares = any(isinstance(need, COMPARING_NEEDS) for one in asked for need in one.statistics)
        found = SimpleNamespace(fewest=fewest, most=most, compares=compares, **facts)
        return [name for name, rule in RULES.items() if rule(found)]

    return broken


def verify(cell: Cell, make: Any, broken_rules: Callable[[Cell], list[str]], losses: bool = True) -> None:
    """The cell is refused if and only if a rule is broken; else it gives finite numbers and has its parts' needs."""
    names = {kind: getattr(cls, "__name__", None) for kind, cls in cell.items()}
    reason, broken = refusal(cell), broken_rules(cell)
    assert bool(reason) == bool(broken), (names, reason, broken)
    assert not reason or ": choose" in reason or " choose " in reason, f"a remedy is missing: {reason}"
    if reason or not losses:
        return
    objective = build(cell)
    parts = [module for module in objective.modules() if isinstance(module, Part)]
    union = functools.reduce(operator.or_, (part.requirements for part in parts), Requirements())
    assert objective.requirements == union, names
    inputs = make.random(objective, references=3 if union.max_references is None else None)
    output = inputs.into(objective)
    output.losses.sum().backward()
    assert all(bool(value.isfinite().all()) for value in (output.losses, *output.logged.values())), names
    assert inputs.policy.chosen.scores.grad is not None and bool(inputs.policy.chosen.scores.grad.isfinite().all()), (
        names
    )


def test_the_default_of_each_kind_has_every_property_that_a_rule_asks_for(broken_rules):
    assert broken_rules({}) == []
    assert count() >= 288_000, "parts are found"


def test_every_rule_refuses_some_pair_of_parts(broken_rules):
    found = {name for cell in pairs() for name in broken_rules(cell)}
    assert found == set(RULES)


def test_each_two_parts_are_combined_or_refused_for_a_reason(make, broken_rules):
    cells = list(pairs())
    assert len(cells) >= 600
    for cell in cells:
        verify(cell, make, broken_rules)


def test_random_cells_of_the_full_grid_are_combined_or_refused_for_a_reason(make, broken_rules):
    cells = list(product(RANDOM_CELLS, seed=1))
    assert len(cells) == RANDOM_CELLS
    for cell in cells:
        verify(cell, make, broken_rules)


@pytest.mark.slow
def test_all_combinations_of_classes_with_different_flags_are_combined_or_refused_for_a_reason(make, broken_rules):
    """The whole product of one class for all those with the same flags and requirements; every tenth is computed."""
    kinds = {kind: list(found.values()) for kind, found in representatives().items()}
    cells = [dict(zip(kinds, cell, strict=True)) for cell in itertools.product(*kinds.values())]
    assert len(cells) >= 100_000
    for number, cell in enumerate(cells):
        verify(cell, make, broken_rules, losses=number % 10 == 0)
