"""A run that was cut off anywhere ends as the run that was not: the same bits, every pair once an epoch."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_pairs
from lightning.pytorch.callbacks import EarlyStopping
from training_runs import Ran, Run, differences, fit, trained

from lit_pref.errors import UsageError
from lit_pref.modules.schedules import Cosine
from lit_pref.objectives.beta_dpo import BetaDPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.weighted import Weighted
from lit_pref.run.checkpoint_model import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = 20  # windows of 8, 8 and 4 pairs: 3, 3 and 2 micro-batches


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Dropout, AdamW, accumulation, a ragged window, clipping, a schedule, and a beta that moves."""
    folder = tmp_path_factory.mktemp("pairs")
    train, val = write_pairs(folder / "train.jsonl", PAIRS), write_pairs(folder / "val.jsonl", 5, seed=1)
    return Run(
        policy={"path": str(policy_folder), "dropout": 0.1},
        data={"train": str(train), "val": str(val), "global_batch": 8, "micro_batch": 3},
        objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        schedule=Cosine(warmup=2),
        trainer={"max_epochs": 2, "gradient_clip_val": 1.0},
    )


def last(ran: Ran) -> dict:
    return trained(read_checkpoint(sorted((ran.folder / "checkpoints").glob("*.ckpt"))[-1]))


def validated(ran: Ran) -> dict[int, float]:
    return {step: numbers["val/loss"] for step, numbers in ran.logged.steps.items() if "val/loss" in numbers}


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"val_check_interval": 1},
        {"val_check_interval": 2, "check_val_every_n_epoch": None},
        {"max_steps": 5},
        {"limit_val_batches": 0},
    ],
    ids=str,
)
def test_from_every_checkpoint_of_a_run_the_rest_is_the_same_to_the_last_bit(run: Run, tmp_path: Path, trainer):
    whole = fit(run, tmp_path / "whole", every=1, **trainer)
    steps = trainer.get("max_steps", 6)
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("*.ckpt"))
    assert [path.name for path in checkpoints] == [f"step={k:08d}.ckpt" for k in range(1, steps + 1)]
    beginnings = [3, 6, 8, 11, 14, 16]
    for step, path in enumerate(checkpoints, start=1):
        rest = fit(run, tmp_path / str(step), ckpt=path, every=1, **trainer)
        assert rest.given == whole.given[beginnings[step - 1] :]
        if step < steps:
            assert differences(last(rest), last(whole)) == []
            assert validated(rest) == {at: loss for at, loss in validated(whole).items() if at > step}


def test_a_sum_of_objectives_resumes_with_the_state_of_each(run: Run, tmp_path: Path):
    run = replace(
        run, objective=lambda: Weighted([EpsilonDPO(beta=0.1, epsilon=0.05), BetaDPO(filtered=0.4)], [1, 0.5])
    )
    whole = fit(run, tmp_path / "whole")
    part = fit(run, tmp_path / "part", stop_at_step=3)
    rest = fit(run, tmp_path / "part", ckpt=part.checkpoint(3))
    assert differences(last(rest), last(whole)) == []
    states = [ran.module.objective.progress for ran in (whole, rest)]
    assert states[0] == states[1] and states[0]["beta"] != 0.1 and states[0]["BetaDPO/gap_deviation"] > 0
    assert whole.logged.column("train/state/BetaDPO/gap_mean")[-1] == states[0]["BetaDPO/gap_mean"]
    assert {"train/EpsilonDPO/loss", "train/BetaDPO/kept"} <= {
        name for own in whole.logged.steps.values() for name in own
    }


def test_every_pair_once_an_epoch_and_another_order_in_the_next(run: Run, tmp_path: Path):
    given = fit(run, tmp_path).given
    orders = [[name for at, ids in given if at == epoch for name in ids] for epoch in range(2)]
    assert all(len(order) == PAIRS and set(Counter(order).values()) == {1} for order in orders)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("trainer", [{}, {"max_steps": 6}], ids=str)
def test_stopped_at_a_step_of_the_full_schedule_and_resumed_is_the_same_run(run: Run, tmp_path: Path, step, trainer):
    whole = fit(run, tmp_path / "whole", **trainer)
    part = fit(run, tmp_path / "part", stop_at_step=step, **trainer)
    assert part.trainer.global_step == step and part.checkpoint(step).exists()
    rest = fit(run, tmp_path / "part", ckpt=part.checkpoint(step), **trainer)
    assert part.given + rest.given == whole.given
    assert differences(last(rest), last(whole)) == []
    rates = [ran.logged.column("train/learning_rate") for ran in (part, rest, whole)]
    assert rates[0] + rates[1] == rates[2]


def test_a_run_that_reached_its_last_step_in_mid_epoch_goes_on_when_it_is_given_more(run: Run, tmp_path: Path):
    run = replace(run, schedule=None)
    whole = fit(run, tmp_path / "whole")
    part = fit(run, tmp_path / "part", max_steps=4)
    rest = fit(run, tmp_path / "part", ckpt=part.checkpoint(4))
    assert part.given + rest.given == whole.given
    assert differences(last(rest), last(whole)) == []


@pytest.mark.parametrize("interval, validated_at", [(1.0, [3, 6, 9]), (2, [2, 5, 8]), (1, [1, 2, 3])])
def test_early_stopping_decides_the_same_after_a_resume(run: Run, tmp_path: Path, interval, validated_at):
    def stopping() -> dict:
        # The extra_response validation is the second that is not ten nats better than the first.
        watching = EarlyStopping("val/loss", patience=2, min_delta=10.0)
        return {"max_epochs": 5, "val_check_interval": interval, "every": 1, "callbacks": [watching]}

    end = validated_at[-1]
    whole = fit(run, tmp_path / "whole", **stopping())
    assert list(validated(whole)) == validated_at and whole.trainer.global_step == end
    for step in {1, 2, end - 2, end}:
        rest = fit(run, tmp_path / str(step), whole.checkpoint(step), **stopping())
        assert rest.trainer.global_step == end
        assert step == end or differences(last(rest), last(whole)) == []


def test_a_run_that_was_killed_after_its_last_step_takes_no_other(run: Run, tmp_path: Path):
    part = fit(run, tmp_path / "part", stop_at_step=2)
    again = fit(run, tmp_path / "part", ckpt=part.checkpoint(2), stop_at_step=2)
    assert again.given == [] and again.trainer.global_step == 2


def test_resuming_from_an_older_checkpoint_beside_newer_ones_is_refused(run: Run, tmp_path: Path):
    whole = fit(run, tmp_path / "whole", every=1, max_epochs=1)
    with pytest.raises(UsageError, match="contains a checkpoint of step 3 and this run resumes from step 1"):
        fit(run, tmp_path / "whole", ckpt=whole.checkpoint(1), max_epochs=1)


@pytest.mark.slow
def test_resuming_with_workers_under_kill_is_exact(tmp_path: Path):
    options = ["--devices", "1", "--workers", "2", "--epochs", "2", "--objectives", "EpsilonDPO"]
    assert killed(tmp_path, "--kills", "1", *options, "--moments", "training")["lost"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["validation", "saving", "filling", "export"])
def test_a_run_that_was_killed_within_something_leaves_what_the_whole_run_leaves(tmp_path: Path, moment: str):
    options = ["--devices", "1", "--workers", "0", "--epochs", "2", "--objectives", "MMPO", "--moments", moment]
    result = killed(tmp_path, "--kills", "2", *options)
    assert result["lost"] == 0 and result["moments"] == {moment: 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--devices", "2"),
        ("--devices", "2", "--strategy", "fsdp"),
        ("--devices", "2", "--strategy", "fsdp-distributed"),
        ("--devices", "2", "--strategy", "fsdp2", "--epochs", "2", "--moments", "saving", "export"),
    ],
    ids=str,
)
def test_killed_runs_on_two_processes_end_as_the_run_that_was_not_killed(tmp_path: Path, arguments):
    assert killed(tmp_path, "--kills", "5", *arguments)["lost"] == 0


def killed(folder: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "kill_test.py"), "--folder", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())
