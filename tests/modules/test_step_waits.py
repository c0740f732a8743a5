"""No operation of a training step makes the host wait for its device, and none copies to it with a wait."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shapeless_device import META, BlockingCopies, without_autocast
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.reward import reward_scorer
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.reward import RewardModule
from lit_pref.objectives.aot import AOT
from lit_pref.objectives.base import Objective
from lit_pref.objectives.bco import BCO
from lit_pref.objectives.bmc import BMC
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.ld_dpo import LDDPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.odpo import ODPO
from lit_pref.objectives.parts.batch_adaptive import BatchAdaptive
from lit_pref.objectives.parts.reference import Geometric
from lit_pref.objectives.parts.temperature import ColumnTemperature
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.objectives.reward.pcrm import TokenPCRM
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.references.lookup import TABLE, NeededScores
from lit_pref.references.reference import InitialPolicy, Reference
from lit_pref.references.store import KEY, Scores, StoreIdentity
from lit_pref.references.stored import Stored, add_stored_scores
from lit_pref.scores import COMPARING_NEEDS, PromptValue
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import Scorer
from lit_pref.scoring.value import ValueHead

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 23}
SPEC = ModelSpec(config={"model_type": "llama", **SHAPE})


def model_of(kind: Any) -> Any:
    config = AutoConfig.for_model("llama", **SHAPE, num_key_value_heads=1, pad_token_id=0, num_labels=1)
    model = kind.from_config(config)
    enable_prefix_sharing(model)
    return model


def pairs_for(objective: Objective, layout: Layout) -> PreferenceBatch:
    asked, text = objective.requirements, TruncatedText("", "", "", True, True)
    columns = {name: 0.5 for name in asked.columns - {"margin", "probability"}}
    sides = [([11, 12, 13, 2], [15, 2]), ([14, 2], [16, 17, 14, 2]), ([14], [18])]
    pairs = [
        PreferencePair(f"pair {k}", [1, 5 + k], chosen, rejected, 1.0 + k, 0.7, columns, None, text)
        for k, (chosen, rejected) in enumerate(sides)
    ]
    return collate(pairs, 0, layout=layout, token_functions=asked.token_functions)


def stored(batch: PreferenceBatch, weights: str) -> Stored:
    """A stored reference that has a score for every response of the batch, and for each of its tokens."""
    keys, pairs = batch.pairs.response_keys, batch.pairs
    needed = NeededScores(np.array([(key, key, 9) for key in keys], TABLE))
    lengths = torch.cat([pairs.chosen_lengths, pairs.rejected_lengths]).int().numpy()
    flat = np.array([key for side in zip(*keys, strict=True) for key in side], KEY)
    needed.take(Scores(flat, -1.5 * lengths, lengths, np.full(lengths.sum(), -1.5, np.float32)))
    reference = Stored(InitialPolicy(), SPEC)
    reference.open(StoreIdentity(weights, "fp32", "tokens", ""), needed, own_tokenizer=False)
    return reference


def module_of(objective: Objective, batch: PreferenceBatch, references: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a run on `meta`, as it is in its training loop."""
    live = any(isinstance(need, COMPARING_NEEDS) for need in objective.requirements.statistics)
    own: list[Reference] = [stored(batch, str(k)) for k in range(references)]
    module: PairModule
    if not references:
        module = RewardModule(replace(SPEC, head="scalar"), objective)
        module.scorer = reward_scorer(model_of(AutoModelForSequenceClassification), None)
    else:
        module = PreferenceModule(SPEC, objective, None if live else [InitialPolicy() for _ in own])
        module.scorer = Scorer(model_of(AutoModelForCausalLM))
        for need in objective.requirements.statistics:
            if isinstance(need, PromptValue):
                module.scorer.value = ValueHead(SHAPE["hidden_size"], torch.float32, need.rate)
        if live:
            own = module.references
            own[0].scorer = copy.deepcopy(module.scorer).to(META).eval().requires_grad_(False)
        module.references = own
    module._guard.deferred = True
    trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_step=4, precision_plugin=None)
    monkeypatch.setattr(type(module), "trainer", trainer)
    return module.to(META)


def step(module: Any, batch: PreferenceBatch, optimizer: torch.optim.Optimizer) -> None:
    """What Lightning calls of a module in an optimizer step."""
    optimizer.zero_grad()
    module.training_step(batch, 0).backward()
    module._guard.check(module.trainer, optimizer)
    clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    with module._guard.holding(module.objective):
        module.objective.update(lambda total: total)
    module._guard._unread = None  # it has arrived by the next step


CASES = {
    "DPO": (DPO, 1),
    "MRPO, two stored references": (MRPO, 2),
    "a geometric mean of two": (lambda: DPO(reference=Geometric([1.0, 2.0])), 2),
    "EpsilonDPO, a live reference": (EpsilonDPO, 1),
    "MMPO": (MMPO, 1),
    "DPO, padded": (DPO, 1),
    "BMC, padded": (BMC, 1),
    "EpsilonDPO, padded": (EpsilonDPO, 1),
    "a reward model of tokens, padded": (TokenPCRM, 0),
    "BMC, log-probs of tokens": (BMC, 1),
    "LDDPO": (LDDPO, 1),
    "beta-DPO": (lambda: DPO(temperature=BatchAdaptive(filtered=0.4)), 1),
    "a temperature from a column": (lambda: DPO(temperature=ColumnTemperature("trust")), 1),
    "ODPO": (ODPO, 1),
    "AOT": (AOT, 1),
    "BCO": (BCO, 1),
    "a reward model": (BradleyTerry, 0),
    "a reward model of tokens": (TokenPCRM, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_from_its_device(name, monkeypatch):
    make, references = CASES[name]
    objective = make()
    batch = pairs_for(objective, "padded" if "padded" in name else "prefix_shared")
    module = module_of(objective, batch, references, monkeypatch)
    needs = objective.requirements.reference_statistics
    add_stored_scores([own for own in module.references if isinstance(own, Stored)], needs, batch)
    without_autocast(monkeypatch)
    if isinstance(temperature := getattr(objective, "temperature", None), BatchAdaptive):
        temperature._known = temperature.steps, temperature.steps._version, 0  # read once, at the start of a run
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
    with BlockingCopies() as copies:
        for _ in range(2):
            step(module, batch.packed().to(META), optimizer)
    assert not copies.found
