"""A covering set of the grid of parts trains a tiny model: each two parts that combine are in one of its steps."""

import copy
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scores import COMPARING_NEEDS
from lit_pref.scoring.scorer import Scorer, score_readout

sys.path.append(str(ROOT / "tools"))
from part_combinations import build, covering, valid_pairs

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 23}


def scorer(seed: int) -> Scorer:
    config = AutoConfig.for_model("llama", **SHAPE, num_key_value_heads=1, pad_token_id=0, initializer_range=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Scorer(AutoModelForCausalLM.from_config(config))


def batch_for(objective: Pairwise) -> PreferenceBatch:
    """Two pairs with a value of everything that the objective reads."""
    asked = objective.requirements
    texts = TruncatedText("", "", "", True, True)
    made = []
    for k, (chosen, rejected) in enumerate([([11, 12, 13, 2], [15, 2]), ([14, 2], [16, 17, 14, 2])]):
        columns = {name: 0.5 + k for name in asked.columns - {"margin", "probability"}}
        spans = {name: ([0.5] * len(chosen), [1.5] * len(rejected)) for name in asked.token_columns}
        pair = PreferencePair(f"pair {k}", [1, 5 + k], chosen, rejected, 1.0 + k, 0.7, columns, None, texts)
        pair = replace(pair, token_columns=spans, extra_response=[18, 2])
        made.append(
            pair if asked.extra_function is None else pair.with_extra_response(*asked.extra_function(pair, frozenset()))
        )
    extra = "extra_response" in asked.sides
    return collate(made, pad_id=0, token_functions=asked.token_functions, extra_response=extra)


def step(objective: Pairwise, policy: Scorer, references: list[Scorer]) -> Any:
    """One step of gradient descent; returns the output of the objective."""
    asked, batch = objective.requirements, batch_for(objective)
    with torch.no_grad():
        readouts = [reference.readout(batch) for reference in references]
        scores = [score_readout(readout, batch, asked.reference_statistics) for readout in readouts]
        if (extra := batch.extra_response) is not None:
            for own, reference in zip(scores, references, strict=True):
                own.extra_response = score_readout(reference.readout(extra), extra).chosen
    compares = any(isinstance(need, COMPARING_NEEDS) for need in asked.statistics)
    output = objective(policy(batch, asked.statistics, readouts[0] if compares else None), scores, batch.pairs)
    output.losses.mean().backward()
    torch.optim.SGD(policy.parameters(), lr=1e-3).step()
    objective.update(lambda total: total)
    return output


@pytest.mark.filterwarnings("ignore:.*the margin is used twice")
def test_a_covering_set_trains_a_model():
    initial, others = scorer(0), [scorer(seed) for seed in (1, 2)]
    cells = covering()
    assert len(valid_pairs()) >= 500
    assert all(any(pair.items() <= cell.items() for cell in cells) for pair, _ in valid_pairs())
    for cell in cells:
        objective, policy = build(cell), copy.deepcopy(initial)
        asked = objective.requirements
        count = asked.min_references if asked.max_references is not None else 2
        output = step(objective, policy, others[:count])
        names = {kind: getattr(cls, "__name__", None) for kind, cls in cell.items()}
        assert bool(output.losses.isfinite().all()), names
        moved = [(a - b).abs().max() for a, b in zip(policy.parameters(), initial.parameters(), strict=True)]
        assert bool(torch.stack(moved).isfinite().all()), names
        saturated = bool((output.logged["logits"].abs() > 20).any())  # an exponential score at these log-probs
        assert max(moved) > 0 or saturated, names
