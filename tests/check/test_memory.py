"""The memory of a step as `check` predicts it, against the memory that real steps take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, write_pairs
from lightning.pytorch import Trainer

from lit_pref.check.live_tensors import LiveTensors
from lit_pref.check.memory import Devices, largest_micro_batch, memory, memory_table, tokens_of, tokens_that_fit
from lit_pref.check.step_memory import PARTS, StepMemory, step_memory
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.references.reference import InitialPolicy

pytestmark = pytest.mark.filterwarnings("ignore")
ADAMW = torch.optim.AdamW


@pytest.fixture
def trained(tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Train a policy for one step and return its module."""

    def run(data: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **options: Any) -> PreferenceModule:
        write_pairs(tmp_path / "pairs.jsonl", 24)
        pairs = {"global_batch": 8, "val_fraction": 0, **(data or {})}
        options = {"layout": "padded", "reference_store": False, **options}
        module = PreferenceModule(ModelSpec(path=str(policy_folder), **(spec or {})), DPO(), **options)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(accelerator="cpu", devices=1, max_steps=1, use_distributed_sampler=False, **quiet)
        trainer.fit(module, PreferenceDataModule(str(tmp_path / "pairs.jsonl"), **pairs))
        return module

    return run


def measured(*cells: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tools" / "bench_memory.py"), "--here", *cells]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {cell["cell"]: cell for cell in found}


def test_the_prediction_is_within_a_fifth_of_the_measured_peak():
    found = measured("small")
    assert 0.8 <= found["small"]["ratio"] <= 1.2, found


@pytest.mark.slow
def test_predictions_are_within_a_fifth_of_the_measured_peaks_on_the_whole_grid():
    sys.path.insert(0, str(ROOT / "tools"))
    from bench_memory import GRID

    found = {}
    for name in GRID:
        found |= measured(name)
    assert not {name: cell for name, cell in found.items() if not 0.8 <= cell["ratio"] <= 1.2}


def test_tensors_without_data_take_the_memory_that_real_ones_take(trained):
    module = trained()
    batch, _ = largest_micro_batch(module)
    predicted = step_memory(module, batch).parts
    with LiveTensors(granularity=1) as tensors, tensors.of("activations"):
        scores = module.scorer(batch)
        kept = tensors.live["activations"] + tensors.live["attention"] + tensors.live["head"]
    assert scores.chosen.scores.requires_grad
    forward = predicted["activations"] + predicted.get("attention", 0) + predicted.get("head", 0)
    assert kept <= forward <= 1.3 * kept, (kept, predicted)


@pytest.mark.parametrize(
    ("optimizer", "times"),
    [
        (lambda p: ADAMW(p), 2.0),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1.0),
    ],
)
def test_the_optimisers_state_is_counted(trained, optimizer: Any, times: float):
    module = trained(optimizer=optimizer)
    weights = sum(p.nbytes for p in module.scorer.parameters())
    predicted = step_memory(module, largest_micro_batch(module)[0]).parts
    assert predicted.get("optimiser", 0) == pytest.approx(times * weights, rel=0.01)
    assert predicted["references"] >= weights, "a copy of the policy"


def test_adapters_have_the_only_gradients_and_checkpointing_keeps_fewer_activations(trained):
    full = trained()
    batch, _ = largest_micro_batch(full)
    lora = trained(spec={"lora": Lora(r=2)}, references=None)
    again = trained(spec={"gradient_checkpointing": True})
    whole, adapters, checkpointed = (step_memory(module, batch).parts for module in (full, lora, again))
    assert adapters.get("gradients", 0) < whole["optimiser"] / 8
    assert adapters.get("references", 0) < adapters["weights"] / 10, "the policy itself, without its adapters"
    assert checkpointed["activations"] < whole["activations"] / 2


def test_with_fsdp2_devices_divide_weights_gradients_state_and_a_copied_reference(trained):
    module = trained(references=[InitialPolicy()])
    batch, _ = largest_micro_batch(module)
    one, four = step_memory(module, batch).parts, step_memory(module, batch, shards=4).parts
    for part in ("weights", "optimiser", "gradients"):
        assert four[part] == one[part] // 4
    copied = sum(p.numel() * p.element_size() for p in module.references[0].scorer.parameters())
    assert four["references"] == one["references"] - 3 * copied // 4 and 0 < four["gathered"] < 2 * one["weights"]


def test_the_largest_micro_batch_is_one_that_the_sampler_gives(trained):
    for data in ({"micro_batch": 2}, {"max_tokens": 200}, {}):
        module = trained(data)
        loaded = [batch.batch for batch in module.data.train_dataloader()]
        batch, accumulates = largest_micro_batch(module)
        assert tokens_of(batch) == max(map(tokens_of, loaded))
        assert accumulates == bool(data)
    # Two devices divide a step.
    assert len(largest_micro_batch(module, world=2)[0]) == 4


def test_a_step_that_does_not_fit_names_the_tokens_that_do(trained, monkeypatch: pytest.MonkeyPatch):
    module = trained({"micro_batch": 8})
    probe: Any = SimpleNamespace(module=module, device=torch.device("cpu"))
    whole = memory(probe, Devices())
    assert whole.severity == "ok" and whole.numbers["total"] == sum(whole.numbers[part] for part in PARTS)
    monkeypatch.setattr("lit_pref.check.memory.STEP", 1)
    fixed, total = (sum(whole.numbers[p] for p in ("weights", "references", "optimiser", "gradients"))), whole.numbers
    half = (fixed + total["total"]) // 2
    monkeypatch.setattr("lit_pref.check.memory.device_memory", lambda device: half / 0.9)
    tight = memory(probe, Devices())
    assert tight.severity == "warning" and f"set data.max_tokens to {tight.numbers['fits']} or less" in tight.says
    assert tight.numbers["fits"] == pytest.approx(whole.numbers["tokens"] / 2, abs=2)
    monkeypatch.setattr("lit_pref.check.memory.device_memory", lambda device: fixed / 2)
    assert "train adapters (policy.lora)" in memory(probe, Devices()).says


def test_a_model_that_reads_its_numbers_is_a_note_and_no_crash(trained, monkeypatch: pytest.MonkeyPatch):
    module = trained()
    monkeypatch.setattr("lit_pref.check.memory.step_memory", lambda *given: (_ for _ in ()).throw(RuntimeError("read")))
    found = memory(SimpleNamespace(module=module, device=torch.device("cpu")), Devices())  # type: ignore[arg-type]
    assert found.severity == "note" and "cannot be predicted: RuntimeError: read" in found.says


def test_the_table_lists_each_part_that_takes_memory():
    lines = list(memory_table({"weights": 2**31, "optimiser": 2**20, "heap": 0, "tokens": 7}))
    assert [line.split()[0] for line in lines] == ["weights", "optimizer"] and "2.0 GiB" in lines[0]


def test_tokens_that_fit_are_in_proportion_and_never_negative():
    predicted = StepMemory({"weights": 1000, "activations": 4000, "context": 500})
    assert predicted.fixed == 1500 and predicted.allocated == 5000
    assert tokens_that_fit(predicted, 4096, 3500.0) == 2048 and tokens_that_fit(predicted, 4096, 100.0) == 0
