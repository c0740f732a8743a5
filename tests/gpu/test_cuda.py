"""One CUDA device does what the CPU does: scores, a run in bf16-mixed, FSDP2 with its checkpoints, diverging runs.

They have not been run on a CUDA device yet, as none was at hand; with "cpu" in place of "cuda" they pass, all but the
one about Triton's kernels.
`python -m pytest -q -m gpu -n 0 tests/gpu` runs them, and fails where there is no such device.
"""

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_policy
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from training_runs import Ran, Run, fit

from lit_pref.__main__ import main
from lit_pref.data.batching.collation import collate
from lit_pref.errors import Diverged
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.nonfinite import NonfiniteGuard
from lit_pref.modules.sharding import FSDP2
from lit_pref.objectives.bmc import BMC
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.references.moving import MovingReference
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.scores import TokenLogps
from lit_pref.scoring.head import token_values
from lit_pref.scoring.kernel_choice import disagreement, kernel_obstacle, kernels_for
from lit_pref.scoring.products import multiplies_bf16
from lit_pref.scoring.scorer import Scorer
from lit_pref.scoring.varlen import KERNEL, agrees

sys.path.append(str(ROOT / "tools"))
from bench_gpu_attention import attention_rows
from step_waits import waits_of_steps

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _device() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.fail("-m gpu asks for the tests that need a CUDA device, and torch sees none here")


TEXT = TruncatedText("", "", "", True, True)
IDS = [([5, 6, 7], [9, 10, 11, 12], [14, 15]), ([8], [13], [16, 17, 18]), ([5] * 9, [6, 7], [8])]
PAIRS = [PreferencePair(str(k), *ids, None, None, {}, None, TEXT) for k, ids in enumerate(IDS)]


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-1)])
def test_token_logps_are_those_of_the_cpu(layout: Any, dtype: str, tolerance: float, policy_folder: Path):
    # Shared rows go through a mask in float32, and through the kernel for sequences of different lengths in bfloat16.
    scorer, needs = Scorer(ModelSpec(path=str(policy_folder), dtype=dtype).build()).eval(), frozenset({TokenLogps()})
    enable_prefix_sharing(scorer.model)
    with torch.no_grad():
        there = scorer(collate(PAIRS, 0), needs)
        here = scorer.to(DEVICE)(collate(PAIRS, 0, layout=layout).to(DEVICE), needs)
    for side in ("chosen", "rejected"):
        expected, found = (getattr(scores, side).statistics[TokenLogps()] for scores in (there, here))
        assert found.device.type == DEVICE
        torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-1)])
def test_gradients_of_both_layouts_agree(dtype: str, tolerance: float, policy_folder: Path):
    scorer = Scorer(ModelSpec(path=str(policy_folder), dtype=dtype).build()).to(DEVICE)
    enable_prefix_sharing(scorer.model)
    gradients = []
    for layout in ("prefix_shared", "padded"):
        scores = scorer(collate(PAIRS, 0, layout=layout).to(DEVICE))  # type: ignore[arg-type]
        sums = (scores.chosen.scores - scores.rejected.scores).sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(sums, list(scorer.parameters()))]))
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


def test_bf16_is_multiplied_with_fp32_sums_and_kernels_agree_with_torch_on_the_cpu():
    device = torch.device(DEVICE, 0)
    assert multiplies_bf16(device)
    assert disagreement(importlib.import_module("lit_pref.scoring.kernels"), device) is None
    assert kernel_obstacle(device) is None


@pytest.mark.parametrize("precision", ["bf16", "split", "fp32"])
@pytest.mark.parametrize("kernels", [True, False])
def test_the_heads_precision_gives_what_its_emulation_on_the_cpu_gives(
    precision: str, kernels: bool, policy_folder: Path
):
    scorer, batch = Scorer(ModelSpec(path=str(policy_folder)).build(), precision).eval(), collate(PAIRS, 0)
    with torch.no_grad():
        here = scorer.readout(batch)
        assert here.weight is not None and here.bias is None
        hidden, weight = here.hidden.to(DEVICE), here.weight.to(DEVICE)
        there = replace(here, hidden=hidden, weight=weight, kernels=kernels_for(hidden.device) if kernels else None)
        expected, _ = token_values(here, batch.rows.targets)
        found, _ = token_values(there, batch.rows.targets.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("group", [1, 7])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_for_sequences_of_different_lengths_passes_its_test(dtype: torch.dtype, size: int, group: int):
    assert KERNEL is not None, "torch 2.10 and newer have it"
    assert agrees(KERNEL, torch.device(DEVICE), dtype, size, group)


def test_the_kernels_that_a_run_uses_are_right_where_that_of_cudnn_is_reported_to_be_wrong():
    rows = [row for row in attention_rows(DEVICE) if row["kernel"] in ("without cudnn", "lit_pref")]
    assert [(row["name"], row["verdict"]) for row in rows if row["verdict"] != "ok"] == []


def three_steps(policy: Path, pairs: Path, folder: Path, device: str = DEVICE, **options: Any) -> Ran:
    run = Run(
        policy={"path": str(policy)},
        data={"train": str(pairs), "val_fraction": 0.0, "global_batch": 8},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return fit(run, folder, every=2, accelerator=device, max_steps=3, **options)


@pytest.mark.parametrize("objective", [MRPO, EpsilonDPO, BMC])
def test_no_step_waits_for_the_device(tmp_path: Path, policy_folder: Path, pairs_file: Path, objective: Any):
    run = Run(
        policy={"path": str(policy_folder)},
        data={"train": str(pairs_file), "val_fraction": 0.0, "global_batch": 8, "micro_batch": 4},
        objective=objective,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
        trainer={"precision": "bf16-mixed", "log_every_n_steps": 100, "gradient_clip_val": 1.0},
    )
    assert waits_of_steps(lambda watch: fit(run, tmp_path, accelerator=DEVICE, callbacks=[watch])) == []


def test_three_steps_in_bf16_mixed_log_what_the_cpu_does_and_keep_fp32_weights(
    tmp_path: Path, policy_folder: Path, pairs_file: Path
):
    runs = [
        three_steps(policy_folder, pairs_file, tmp_path / name, device, precision="bf16-mixed")
        for name, device in (("there", "cpu"), ("here", DEVICE))
    ]
    expected, found = (ran.logged.column("train/loss") for ran in runs)
    assert len(found) == 3
    assert found[0] == pytest.approx(math.log(2), abs=1e-3), "the policy is its own reference"
    assert found == pytest.approx(expected, rel=5e-2)
    saved = read_checkpoint(runs[1].checkpoint(3))["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.float32}
    start = runs[1].module.policy.build().state_dict()
    assert not torch.equal(saved["scorer.model.model.norm.weight"].cpu(), start["model.norm.weight"])


@pytest.mark.parametrize("distributed", [False, True], ids=["one file", "a folder of shards"])
def test_fsdp2_on_one_device_trains_saves_and_goes_on_as_without_it(
    tmp_path: Path, pairs_file: Path, distributed: bool
):
    policy = make_policy(tmp_path / "tied", seed=0, tie_word_embeddings=True)

    def sharded() -> ModelParallelStrategy:
        return ModelParallelStrategy(1, 1, save_distributed_checkpoint=distributed)

    plain = three_steps(policy, pairs_file, tmp_path / "plain")
    whole = three_steps(policy, pairs_file, tmp_path / "whole", strategy=sharded())
    again = three_steps(policy, pairs_file, tmp_path / "again", strategy=sharded(), ckpt=whole.checkpoint(2))
    assert whole.checkpoint(3).is_dir() == distributed
    assert whole.logged.column("train/loss") == pytest.approx(plain.logged.column("train/loss"), rel=1e-4)
    expected = read_checkpoint(plain.checkpoint(3))["state_dict"]
    for ran in (whole, again):
        found = read_checkpoint(ran.checkpoint(3))["state_dict"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].cpu(), value.cpu(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("gradients", [None, "float32"])
def test_fsdp2_with_weights_in_bf16_in_transit_learns_what_bf16_mixed_does(
    tmp_path: Path, policy_folder: Path, pairs_file: Path, gradients: str | None
):
    strategies = {"plain": "auto", "sharded": FSDP2(gradients=gradients, prefetch=1, save_distributed_checkpoint=False)}
    runs = [
        three_steps(policy_folder, pairs_file, tmp_path / name, precision="bf16-mixed", strategy=strategy)
        for name, strategy in strategies.items()
    ]
    expected, found = (ran.logged.column("train/loss") for ran in runs)
    assert found == pytest.approx(expected, rel=5e-2)
    assert {value.dtype for value in read_checkpoint(runs[1].checkpoint(3))["state_dict"].values()} == {torch.float32}


@pytest.mark.parametrize("kind", [InitialPolicy, MovingReference])
def test_a_live_reference_is_sharded_and_rounded_by_fsdp2_as_the_policy_is(
    tmp_path: Path, policy_folder: Path, pairs_file: Path, kind: Any
):
    run = Run(
        policy={"path": str(policy_folder)},
        data={"train": str(pairs_file), "val_fraction": 0.0, "global_batch": 8, "micro_batch": 4},
        objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05),
        references=lambda: [kind()],
        trainer={"precision": "bf16-mixed", "max_steps": 2},
    )
    ran = fit(run, tmp_path, accelerator=DEVICE, strategy=FSDP2(save_distributed_checkpoint=False))
    assert ran.logged.column("train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert ran.logged.column("train/rewards/margins")[0] == ran.logged.column("train/epsilon_step")[0] == 0
    assert ran.logged.column("train/state/beta")[0] == 0.1
    model = ran.module.references[0].scorer.model.model
    assert all(isinstance(p, DTensor) and p.device.type == DEVICE for p in model.layers.parameters())


class OneIsNan(DPO):
    """Gives the pair `bad` a loss, and so all weights a gradient, that is not a number."""

    bad = ""

    def forward(self, policy, references, pairs):
        output = super().forward(policy, references, pairs)
        factors = torch.tensor([math.nan if name == self.bad else 1.0 for name in pairs.ids])
        output.losses = output.losses * factors.to(output.losses.device)
        return output


class Weights(Callback):
    """Keeps the weights after every optimizer step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def test_gradients_that_are_nan_reach_no_weight_and_stop_the_run(
    tmp_path: Path, policy_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(NonfiniteGuard, "deferred", True)  # as it is on a GPU by itself
    run = Run(
        policy={"path": str(policy_folder)},
        data={"train": str(pairs_file), "val_fraction": 0.0, "global_batch": 8},
        objective=OneIsNan,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        trainer={"gradient_clip_val": 1.0, "log_every_n_steps": 100},
    )
    given = fit(run, tmp_path / "whole", accelerator=DEVICE, max_steps=2).given
    monkeypatch.setattr(OneIsNan, "bad", given[1][1][0])
    weights = Weights()
    with pytest.raises(Diverged, match=r"the loss of 1 pair\(s\) is not finite at step 1: "):
        fit(run, tmp_path / "run", accelerator=DEVICE, callbacks=[weights])
    first, second = weights.after
    assert all(torch.equal(value, first[name]) and value.isfinite().all() for name, value in second.items())
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "kind",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    ],
    ids=["Adam", "AdamW", "SGD"],
)
def test_the_fused_kernel_changes_nothing_where_found_inf_is_set(kind: Callable[[Any], Any]):
    weight = torch.nn.Parameter(torch.arange(1.0, 2000.0, device=DEVICE))
    optimizer = kind([weight])

    def step(gradient: float, found: float) -> list[torch.Tensor]:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(found, device=DEVICE)
        optimizer.step()
        return [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]

    before, held, after = step(1.0, 0.0), step(math.nan, 1.0), step(1.0, 0.0)
    assert len(before) > 1 and all(map(torch.equal, held, before))
    assert not any(map(torch.equal, after, held)) and all(value.isfinite().all() for value in after)


def test_a_check_of_the_model_finds_it_in_order(
    tmp_path: Path, policy_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    arguments = ["--config", str(ROOT / "configs" / "mmpo.yaml"), "--trainer.accelerator", DEVICE]
    arguments += ["--model.policy.path", str(policy_folder), "--data.train", str(pairs_file)]
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments, "--model", "--json", "out.json"])
    found = json.loads(Path("out.json").read_text())["findings"]
    assert ended.value.code in (None, 0), [finding["says"] for finding in found if finding["severity"] == "stop"]
    (loss,) = (finding["numbers"] for finding in found if finding["topic"] == "first_loss")
    assert loss["policy_is_reference"] and loss["actual"] == pytest.approx(math.log(2), abs=1e-4)
    assert {finding["severity"] for finding in found if finding["topic"] == "twice"} == {"ok"}


def test_fsdp1_is_refused_with_the_recipe_for_fsdp2(
    tmp_path: Path,
    policy_folder: Path,
    pairs_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    arguments = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--run_dir", str(tmp_path / "run")]
    arguments += ["--model.policy.path", str(policy_folder), "--data.train", str(pairs_file)]
    arguments += ["--trainer.accelerator", DEVICE, "--trainer.devices", "1", "--trainer.strategy", "fsdp"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments])
    assert ended.value.code == 2 and "configs/fsdp.yaml" in capfd.readouterr().err
