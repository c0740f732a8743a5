"""The memory of a step as `check` predicts it, against the memory that real steps take."""

import copy
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
from lightning.pytorch.strategies import DDPStrategy
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode

from lit_pref.batch import PreferenceBatch
from lit_pref.check.check import Check
from lit_pref.check.devices import Devices, strategy_of
from lit_pref.check.html import page
from lit_pref.check.live_tensors import LiveTensors
from lit_pref.check.memory import largest_micro_batch, memory, memory_table, tokens_of, tokens_that_fit
from lit_pref.check.report import Finding, Report
from lit_pref.check.step_memory import PARTS, StepMemory, step_memory
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.errors import UsageError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.sharding import FSDP2
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.parts.temperature import EpsilonStep
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.config import run_parser
from lit_pref.scoring import kernel_choice
from lit_pref.scoring.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore")
ADAMW = torch.optim.AdamW


@pytest.fixture
def trained(tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Train a policy for one step and return its module."""

    def run(
        data: dict[str, Any] | None = None,
        spec: dict[str, Any] | None = None,
        precision: Any = "32-true",
        objective: DPO | None = None,
        **options: Any,
    ) -> PreferenceModule:
        write_pairs(tmp_path / "pairs.jsonl", 24)
        pairs = {"global_batch": 8, "val_fraction": 0, **(data or {})}
        options = {"layout": "padded", "reference_store": False, **options}
        module = PreferenceModule(ModelSpec(path=str(policy_folder), **(spec or {})), objective or DPO(), **options)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        quiet |= {"precision": precision}
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


@pytest.mark.slow  # it measures the memory of a process, which depends on the machine
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


def test_a_reference_reads_the_batch_as_it_does_in_a_step(trained, policy_folder: Path):
    module = trained(layout="prefix_shared", references=[Pretrained(str(policy_folder))])
    batch, seen = largest_micro_batch(module)[0], list[PreferenceBatch]()
    reference = module.references[0]
    reference.scorer.register_forward_pre_hook(lambda scorer, args: seen.append(args[0]))
    reference._shares = False  # as a model that cannot read a prompt once
    step_memory(module, batch)
    assert batch.rows.segments is not None
    assert [each.rows.segments for each in seen] == [None, None]
    assert {type(each.rows.input_ids) for each in seen} == {FakeTensor}


def test_with_fsdp2_devices_divide_weights_gradients_state_and_a_copied_reference(trained):
    module = trained(references=[InitialPolicy()])
    batch, _ = largest_micro_batch(module)
    alone = step_memory(module, batch)
    one, four = alone.parts, Devices(4, 1, FSDP2()).memory(alone, module, 4).parts
    for part in ("weights", "optimiser", "gradients"):
        assert four[part] == one[part] // 4
    copied = sum(p.numel() * p.element_size() for p in module.references[0].scorer.parameters())
    assert four["references"] == one["references"] - 3 * copied // 4 and 0 < four["gathered"] < 2 * one["weights"]


def test_the_bytes_that_fsdp2_gathers_follow_its_settings(trained):
    module = trained(precision="bf16-mixed")
    alone = step_memory(module, largest_micro_batch(module)[0])

    def parts(world: int = 4, **settings: Any) -> dict[str, int]:
        return Devices(world, 1, FSDP2(**settings)).memory(alone, module, world).parts

    bf16, fp32, copies = parts(), parts(parameters="float32"), parts(replicas=2)
    assert 2 * bf16["gathered"] == fp32["gathered"] and bf16["casts"] == 0 < fp32["casts"] == alone.parts["casts"]
    assert copies["weights"] == alone.parts["weights"] // 2 and copies["gathered"] == bf16["gathered"]
    assert parts(reshard_after_forward=False)["gathered"] >= bf16["gathered"]
    with pytest.raises(UsageError, match="replicas is 3, which does not divide the 4 devices"):
        parts(replicas=3)


def test_with_fsdp2_the_model_that_gathers_most_and_a_compared_head_are_counted(trained):
    module, compared = trained(), trained(objective=DPO(temperature=EpsilonStep(0.01)))
    alone = step_memory(module, largest_micro_batch(module)[0])

    def gathered(of: PreferenceModule) -> int:
        return Devices(4, 1, FSDP2()).memory(alone, of, 4).parts["gathered"]

    own = gathered(module)
    assert gathered(compared) == own + module.scorer.model.lm_head.weight.nbytes
    large = Scorer(module.policy.build()).requires_grad_(False)
    large.model.lm_head = torch.nn.Linear(32, 100_000, bias=False).requires_grad_(False)
    module.references = [SimpleNamespace(scorer=large, copies=[large])]
    assert own < gathered(module) and 32 * 100_000 * 4 < gathered(module) < 2 * 32 * 100_000 * 4


def test_ddp_copies_gradients_into_buckets_unless_gradients_are_views_of_them(trained):
    module = trained()
    alone = step_memory(module, largest_micro_batch(module)[0])
    weights = sum(p.nbytes for p in module.scorer.parameters())
    for name in ("auto", "ddp"):
        devices = Devices(2, 1, strategy_of(name))
        assert devices.memory(alone, module, 2).parts == alone.parts | {"buckets": weights}
        assert devices.memory(alone, module, 1) == alone
    views = Devices(2, 1, DDPStrategy(gradient_as_bucket_view=True))
    assert views.memory(alone, module, 2) == alone


def test_the_strategy_is_found_by_its_class():
    base = ["--config", str(ROOT / "configs" / "fsdp.yaml"), "--model.policy.path", "P", "--data.train", "d.jsonl"]
    replicas = ["--trainer.strategy.replicas", "2"]
    for further, copies in (([], 1), (replicas, 2), (["--trainer.strategy", "fsdp2"], 1)):
        config = run_parser("fit", PreferenceModule).parse_args([*base, *further])
        check = Check("check")
        check.loosen(config)
        strategy = check._devices.strategy
        assert isinstance(strategy, FSDP2) and strategy.replicas == copies and check._devices.given == 8
        assert config.trainer.strategy == "auto"
    assert strategy_of("deepspeed") is strategy_of("nothing") is None
    check = Check("check")
    check.loosen(run_parser("fit", PreferenceModule).parse_args([*base, *replicas[:1], "0"]))
    assert "FSDP2: replicas is 0; it must be at least 1" in check.report.of("stop")[0].says
    arguments = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.gradient_as_bucket_view", "true"]
    views = strategy_of(run_parser("fit", PreferenceModule).parse_args([*base, *arguments]).trainer.strategy)
    assert isinstance(views, DDPStrategy) and views._ddp_kwargs["gradient_as_bucket_view"] is True


def test_no_kernel_is_launched_for_tensors_without_data(trained, monkeypatch: pytest.MonkeyPatch):
    class Launching:
        """Kernels that read memory, as those of a GPU do."""

        @staticmethod
        def fold(x: torch.Tensor, *others: Any) -> None:
            assert not isinstance(x, FakeTensor), "a kernel was launched for a tensor without data"
            raise AssertionError("a kernel was launched for a real tensor")

    module = trained()
    batch, _ = largest_micro_batch(module)
    expected = step_memory(module, batch)
    monkeypatch.setattr(kernel_choice, "kernel_obstacle", lambda device: None)
    monkeypatch.setattr(kernel_choice, "_module", lambda: Launching)
    with pytest.raises(AssertionError, match="real tensor"):
        module.scorer(batch)
    assert step_memory(module, batch) == expected and module.scorer.head_kernels
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        scorer, fake = copy.deepcopy((module.scorer, batch))
    with mode:
        assert isinstance(scorer(fake).chosen.scores, FakeTensor) and scorer.readout(fake).kernels is None


def test_casts_of_weights_and_the_gradient_of_the_head_do_not_grow_with_tokens(
    trained, monkeypatch: pytest.MonkeyPatch
):
    module = trained({"micro_batch": 2}, precision="bf16-mixed")
    small, _ = largest_micro_batch(module)
    module.data.micro_batch = 4
    large, _ = largest_micro_batch(module)
    here, there = step_memory(module, small), step_memory(module, large)
    linear = [m for m in module.scorer.model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert here.parts["casts"] == sum(m.weight.nbytes for m in linear) / 2
    assert there.fixed == pytest.approx(here.fixed, rel=0.01)
    monkeypatch.setattr("lit_pref.check.memory.STEP", 1)
    assert tokens_that_fit(here, tokens_of(small), there.total) == pytest.approx(tokens_of(large), rel=0.05)
    again, head = step_memory(module, small, accumulates=True), module.scorer.model.lm_head.weight
    assert again.parts["gradients"] == here.parts["gradients"] + head.nbytes


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
    assert tight.severity != "ok" and f"set data.max_tokens to {tight.numbers['fits']} or less" in tight.says
    assert tight.numbers["fits"] == pytest.approx(whole.numbers["tokens"] / 2, abs=2)
    monkeypatch.setattr("lit_pref.check.memory.device_memory", lambda device: fixed / 2)
    hopeless = memory(probe, Devices())
    assert hopeless.severity == "stop" and "train adapters (policy.lora)" in hopeless.says
    for share, severity in ((0.85, "ok"), (0.95, "warning"), (1.2, "warning"), (1.3, "stop")):
        monkeypatch.setattr("lit_pref.check.memory.device_memory", lambda device, s=share: total["total"] / s)
        assert memory(probe, Devices()).severity == severity


def test_a_model_that_reads_its_numbers_is_a_note_and_no_crash(
    trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = trained()
    monkeypatch.setattr("lit_pref.check.memory.step_memory", lambda *given: (_ for _ in ()).throw(RuntimeError("read")))
    found = memory(SimpleNamespace(module=module, device=torch.device("cpu")), Devices())  # type: ignore[arg-type]
    assert found.severity == "note" and "cannot be predicted: RuntimeError: read" in found.says
    said = capsys.readouterr().out  # before it begins, because it takes long
    assert said.startswith("predicting the memory of an optimizer step: one with the largest micro-batch (")


def test_the_table_lists_each_part_that_takes_memory():
    lines = list(memory_table({"weights": 2**31, "optimiser": 2**20, "heap": 0, "tokens": 7}))
    assert lines[0].startswith("the parts that are alive at the peak; what is freed before it")
    assert [line.split()[0] for line in lines[1:]] == ["weights", "optimizer"] and "2.0 GiB" in lines[1]
    assert list(memory_table({"devices": 1, "tokens": 7})) == []


def test_the_page_has_the_table_of_parts():
    finding = Finding("memory", "ok", "one optimizer step needs", numbers={"weights": 2**31, "heap": 0})
    shown = page(Report("check", [finding]), None)
    assert f'<td>weights</td><td class="n">2.0 GiB</td><td>{PARTS["weights"]}</td>' in shown
    assert "<td>heap</td>" not in shown and "<p>The parts that are alive at the peak;" in shown


def test_tokens_that_fit_are_in_proportion_and_never_negative():
    predicted = StepMemory({"weights": 1000, "activations": 4000, "context": 500})
    assert predicted.fixed == 1500 and predicted.allocated == 5000
    assert tokens_that_fit(predicted, 4096, 3500.0) == 2048 and tokens_that_fit(predicted, 4096, 100.0) == 0
