"""A check of losses and gradients that does not wait: a poisoned step changes nothing, is not saved, ends the run."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_pairs
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from training_runs import Explosive, Ran, Run, fit

from lit_pref.errors import Diverged
from lit_pref.modules.nonfinite import NonfiniteGuard
from lit_pref.references.reference import InitialPolicy

pytestmark = pytest.mark.filterwarnings("ignore")
SENTENCE = r"the loss of 1 pair\(s\) is not finite at step {}: {}; lower the learning"


class States(Callback):
    """Keeps the weights, the optimizer's state and the objective's state after every optimizer step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.logged = -1  # the step that was logged last before the run failed

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        values = dict(pl_module.state_dict())
        (optimizer,) = trainer.optimizers
        for k, state in enumerate(optimizer.state.values()):
            values |= {f"{k} {name}": value for name, value in state.items()}
        self.after.append({name: value.clone() for name, value in values.items()})

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.logged = pl_module.logged_step


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    data = {"train": str(write_pairs(folder / "train.jsonl", 20)), "val_fraction": 0.0, "global_batch": 4}
    return Run(
        policy={"path": str(policy_folder)},
        data=data,
        objective=Explosive,
        references=lambda: [InitialPolicy()],
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        trainer={"gradient_clip_val": 1.0, "log_every_n_steps": 100},
    )


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NonfiniteGuard, "deferred", True)


def poison(run: Run, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let one pair of a step explode; return the pattern of the sentence that names it."""
    first = fit(run, folder / "first", max_steps=step + 1)
    monkeypatch.setattr(Explosive, "bad", first.given[step][1][1])
    pairs = first.trainer.datamodule.train_pairs
    return SENTENCE.format(step, re.escape(pairs[pairs.ids.index(Explosive.bad)].place))


def test_a_step_that_is_switched_off_changes_nothing_and_stops_the_run_a_step_later(run, tmp_path, late, monkeypatch):
    sentence, states = poison(run, tmp_path, 2, monkeypatch), States()
    with pytest.raises(Diverged, match=sentence):
        fit(run, tmp_path / "run", callbacks=[states])
    assert len(states.after) == 3 and not (tmp_path / "run" / "checkpoints").exists()
    _, before, after = states.after
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == []
    changed = [name for name, value in before.items() if not torch.equal(value, states.after[0][name])]
    assert {"objective.total", "0 exp_avg", "0 step"} < set(changed) and len(changed) > len(before) / 2


@pytest.mark.parametrize("step", [1, 4], ids=["in the middle", "in the last step"])
def test_no_checkpoint_is_written_after_a_poisoned_step(run, tmp_path, late, monkeypatch, step):
    sentence = poison(run, tmp_path, step, monkeypatch)
    with pytest.raises(Diverged, match=sentence):
        fit(run, tmp_path / "run", every=1)
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) == step


def test_neither_a_log_nor_a_validation_follows_a_poisoned_step(run, tmp_path, late, monkeypatch):
    sentence, states = poison(run, tmp_path, 1, monkeypatch), States()
    logged = replace(run, trainer={**run.trainer, "log_every_n_steps": 1})
    with pytest.raises(Diverged, match=sentence):
        fit(logged, tmp_path / "logged", callbacks=[states])
    assert states.logged == 1
    held_out = replace(run, data={**run.data, "val": str(write_pairs(tmp_path / "val.jsonl", 3, seed=1))})
    with pytest.raises(Diverged, match=sentence):
        fit(held_out, tmp_path / "validated", val_check_interval=2)
    assert not (tmp_path / "validated" / "records").exists()


def test_an_optimizer_without_a_switch_is_stopped_before_its_step(run, tmp_path, late, monkeypatch):
    plain = replace(run, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, fused=False))
    sentence, states = poison(plain, tmp_path, 2, monkeypatch), States()
    with pytest.raises(Diverged, match=sentence):
        fit(plain, tmp_path / "run", callbacks=[states])
    assert len(states.after) == 2


@pytest.mark.parametrize("deferred", [False, True])
def test_gradients_that_are_not_finite_stop_the_run_although_every_loss_is(run, tmp_path, deferred, monkeypatch):
    monkeypatch.setattr(NonfiniteGuard, "deferred", deferred)
    first, states = fit(run, tmp_path / "first", max_steps=3), States()
    monkeypatch.setattr(Explosive, "faulty", first.given[2][1][1])
    pairs = first.trainer.datamodule.train_pairs
    place = re.escape(pairs[pairs.ids.index(Explosive.faulty)].place)
    with pytest.raises(Diverged, match=f"the gradient is not finite at step 2, though every loss is; .*{place}.*eager"):
        fit(run, tmp_path / "run", callbacks=[states])
    assert len(states.after) == 2 + deferred and not (tmp_path / "run" / "checkpoints").exists()
    assert [name for name, value in states.after[-1].items() if not torch.equal(value, states.after[1][name])] == []


def checked(gradient: torch.Tensor) -> None:
    weight = torch.zeros(gradient.shape, dtype=gradient.dtype, requires_grad=True)
    weight.grad = gradient
    plugin = SimpleNamespace(scaler=None)
    trainer: Any = SimpleNamespace(world_size=1, global_step=7, precision_plugin=plugin, is_global_zero=True)
    guard = NonfiniteGuard()
    guard._seen = [(torch.tensor([False, False]), ["one", "two"])]
    guard.check(trainer, torch.optim.SGD([weight], lr=1.0))


def test_large_gradients_of_fp16_are_no_fault_and_infinite_ones_are():
    with pytest.raises(Diverged, match=r"gradient is not finite at step 7.*pairs of this step: one; two; a backward"):
        checked(torch.tensor([1.0, torch.inf]))
    checked(torch.full((2,), 6e4, dtype=torch.float16))  # the norm is more than the largest number of fp16


class LossScales(States):
    """Keeps the loss scale of fp16 after every optimizer step as well."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        super().on_train_batch_end(trainer, *others)
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def test_under_the_loss_scale_of_fp16_a_step_with_a_bad_gradient_is_skipped_and_one_with_a_bad_loss_ends_the_run(
    run, tmp_path, monkeypatch
):
    def scaled(folder: Path, states: Callback) -> Ran:
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        return fit(unclipped, folder, callbacks=[states], plugins=[precision])

    unclipped, states = replace(run, trainer={"log_every_n_steps": 100}), LossScales()
    first = fit(unclipped, tmp_path / "first", max_steps=3)
    monkeypatch.setattr(Explosive, "faulty", first.given[2][1][1])
    assert scaled(tmp_path / "skipped", states).trainer.global_step == 5
    assert states.scales == [1024.0, 1024.0, 512.0, 512.0, 512.0]
    weights = [{name: value for name, value in after.items() if name.startswith("scorer.")} for after in states.after]
    moved = [any(not torch.equal(value, old[name]) for name, value in new.items()) for old, new in pairwise(weights)]
    assert moved == [True, False, True, True]
    monkeypatch.setattr(Explosive, "bad", Explosive.faulty)
    with pytest.raises(Diverged, match="the loss of 1 pair"):
        scaled(tmp_path / "ended", LossScales())


def test_a_run_without_a_bad_loss_is_the_same_with_either_check(run, tmp_path, monkeypatch):
    states = [States(), States()]
    for deferred, kept in zip((False, True), states, strict=True):
        monkeypatch.setattr(NonfiniteGuard, "deferred", deferred)
        fit(run, tmp_path / str(deferred), callbacks=[kept])
    for waited, late in zip(*(kept.after for kept in states), strict=True):
        assert [name for name, value in waited.items() if not torch.equal(value, late[name])] == []
