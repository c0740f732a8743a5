"""AdamW is fused where torch supports it, unless the user says no; clipping, resuming and the first lines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, write_pairs
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from training_runs import Ran, Run, differences, fit, trained

from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules import optimizers
from lit_pref.modules.optimizers import build_optimizer, describe_optimizer, fused_obstacle
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.run.checkpoint_model import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")


def adamw(**more: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, **{"lr": 0.01, "weight_decay": 0.1, **more})


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    train = write_pairs(tmp_path_factory.mktemp("pairs") / "train.jsonl", 32)
    data = {"train": str(train), "val_fraction": 0.0, "global_batch": 8}
    return Run(policy={"path": str(policy_folder)}, data=data, optimizer=adamw(), trainer={"gradient_clip_val": 1.0})


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(run, tmp_path_factory.mktemp("whole"), every=2)


@pytest.fixture
def unfused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A run as before AdamW was fused by default."""
    with monkeypatch.context() as patched:
        patched.setattr(optimizers, "fused_obstacle", lambda *of: "not yet")
        return fit(run, tmp_path / "unfused", every=2)


def final(ran: Ran) -> dict[str, Any]:
    return trained(read_checkpoint(ran.checkpoint(4)))


def weights(ran: Ran) -> torch.Tensor:
    return torch.cat([value.flatten() for value in final(ran)["state_dict"].values()])


def fused(ran: Ran) -> Any:
    return ran.trainer.optimizers[0].param_groups[0]["fused"]


def of(dtype: torch.dtype = torch.float32, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, dtype=dtype))], **options)


@pytest.mark.parametrize(
    ("optimizer", "device", "reason"),
    [
        (of(), "cpu", None),
        (of(), "cuda", None),
        (of(foreach=False), "cpu", None),
        (of(), "mps", "on mps it is not fused by default"),
        (of(fused=False), "cpu", "fused is false"),
        (of(foreach=True), "cpu", "foreach is true"),
        (of(differentiable=True), "cpu", "differentiable is true"),
        (of(torch.float64), "cpu", "weights are in float64"),
        (of(torch.bfloat16), "cuda", "weights are in bfloat16"),
        (torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]), "cpu", "only Adam and AdamW are fused by default"),
    ],
)
def test_what_speaks_against_a_fused_optimizer(optimizer: torch.optim.Optimizer, device: str, reason: str | None):
    assert fused_obstacle(optimizer, torch.device(device)) == reason


def test_adamw_is_fused_and_the_first_steps_differ_by_rounding(whole: Ran, unfused: Ran):
    assert fused(whole) is True and fused(unfused) is None
    start = torch.cat([value.flatten() for value in unfused.module.policy.build().state_dict().values()])
    ours, theirs = weights(whole), weights(unfused)
    assert len(start) == len(ours)
    assert 0 < (ours - theirs).norm() < 1e-4 * (theirs - start).norm()


@pytest.mark.parametrize("asked", [False, True])
def test_what_the_user_says_is_obeyed(run: Run, tmp_path: Path, asked: bool):
    policy = {**run.policy, "dtype": "float64"} if asked else run.policy  # where the default would be the other
    ran = fit(replace(run, policy=policy, optimizer=adamw(fused=asked)), tmp_path, stop_at_step=1)
    assert fused(ran) is asked


def test_the_first_lines_say_whether_and_why(whole: Ran):
    optimizer = build_optimizer(whole.module)
    assert describe_optimizer(optimizer, CPU) == "AdamW, lr 0.01, weight_decay 0.1; fused"
    words = describe_optimizer(of(torch.float64, lr=1e-6), CPU)
    assert words == "AdamW, lr 1e-06, weight_decay 0.01; not fused: weights are in float64"
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
    assert describe_optimizer(sgd, CPU) == "SGD, lr 0.5, weight_decay 0"


def test_a_run_begun_without_is_resumed_with_it_and_says_so(
    run: Run, whole: Ran, unfused: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ran = fit(run, tmp_path / "resumed", ckpt=unfused.checkpoint(2))
    assert "resumed     from step 2 with model.optimizer.fused true instead of null" in capsys.readouterr().out
    assert fused(ran) is True and len(ran.module.resumption.changes) == 1
    # What was asked for explicitly is resumed to the same bits as before.
    same = fit(replace(run, optimizer=adamw(fused=False)), tmp_path / "same", ckpt=unfused.checkpoint(2))
    assert fused(same) is False
    assert differences(final(same)["state_dict"], final(unfused)["state_dict"]) == []
    back = fit(replace(run, optimizer=adamw(fused=False)), tmp_path / "back", ckpt=whole.checkpoint(2))
    assert fused(back) is False
    assert differences(final(fit(run, tmp_path / "again", ckpt=whole.checkpoint(2))), final(whole)) == []


class Scaled(Callback):
    """Puts `16-mixed` in the place of the precision, which Lightning itself offers on CUDA only."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("asked", [None, True])
def test_gradients_are_clipped_under_a_loss_scale(
    run: Run, tmp_path: Path, asked: bool | None, monkeypatch: pytest.MonkeyPatch
):
    """fp16 on CUDA: Lightning refuses to clip the gradients of an optimizer that divides by the loss scale itself."""
    norms = []
    original = torch.nn.utils.clip_grad_norm_

    def clip(*args: Any, **kwargs: Any) -> Any:
        norms.append(float(original(*args, **kwargs)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    run = replace(run, optimizer=adamw(fused=asked))
    ran = [
        fit(run, tmp_path / str(len(callbacks)), callbacks=callbacks, stop_at_step=2) for callbacks in ([Scaled()], [])
    ]
    assert fused(ran[0]) is True
    assert ran[0].logged.column("train/loss") == pytest.approx(ran[1].logged.column("train/loss"), rel=2e-2)
    assert len(norms) == 4 and norms[:2] == pytest.approx(norms[2:], rel=0.1), "divided by the scale, then clipped"


def test_each_configuration_leaves_the_choice_to_the_default():
    """No shipped file sets `fused`, so that each of them takes it where it works."""
    files = [*(ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 8 and not any("fused" in file.read_text() for file in files)


@pytest.mark.parametrize(
    "settings, words", [({"lr": -1.0}, "learning rate"), ({"lr": 1e-3, "weight_decay": -1}, "weight_decay")]
)
def test_settings_that_torch_refuses_are_refused_before_anything_is_computed(policy_folder, settings, words):
    with pytest.raises(UsageError, match=rf"model\.optimizer cannot be built: Invalid {words}"):
        PreferenceModule(
            ModelSpec(path=str(policy_folder)), DPO(), optimizer=lambda p: torch.optim.AdamW(p, **settings)
        )
