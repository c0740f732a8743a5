"""The lines about steps and validations say what the run then does."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_pairs
from lightning.pytorch import Callback

from lit_pref.check.check import Check
from lit_pref.modules.step_lines import Steps, steps_of
from lit_pref.run.run import assemble, build, resolve

pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(Callback):
    def __init__(self) -> None:
        self.validated: list[int] = []
        self.promised: Steps | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.promised = steps_of(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


def options(tmp_path: Path, policy_folder: Path) -> dict[str, Any]:
    write_pairs(tmp_path / "pairs.jsonl", 20), write_pairs(tmp_path / "val.jsonl", 4, seed=1)
    names = {"model.policy.path": str(policy_folder), "data.train": str(tmp_path / "pairs.jsonl")}
    names |= {"data.val": str(tmp_path / "val.jsonl"), "data.global_batch": 8, "data.micro_batch": 3}
    return {**names, "trainer.accelerator": "cpu", "print_summary": False, "run_dir": str(tmp_path / "run")}


@pytest.mark.parametrize(
    "limits, end, validated, words",
    [
        (
            {"trainer.limit_train_batches": 3},
            1,
            [1],
            "by trainer.limit_train_batches 3, which counts micro-batches (3 a step)",
        ),
        ({"trainer.max_epochs": 2}, 6, [3, 6], "6 optimizer step(s) of 8 pairs (the last one of an epoch has 4)"),
        (
            {"trainer.max_epochs": 2, "trainer.val_check_interval": 2},
            6,
            [2, 5],
            "each epoch; the last one after step 5 of 6",
        ),
        ({"trainer.max_epochs": 3, "trainer.max_steps": 4}, 4, [3, 4], "max_steps 4 ends the run in epoch 2 of 3"),
        (
            {"trainer.max_epochs": 1, "trainer.max_steps": 9},
            3,
            [3],
            "ends the run at step 3, before trainer.max_steps 9",
        ),
        (
            {"trainer.max_epochs": 2, "stop_at_step": 4},
            4,
            [3, 4],
            "--stop_at_step 4 ends it there, under the schedule of all 6",
        ),
        ({"trainer.max_epochs": 1, "stop_at_step": 4}, 3, [3], "--stop_at_step 4 is never reached"),
        ({"trainer.max_epochs": 2, "data.global_batch": 64}, 2, [1, 2], "every optimizer step is a whole epoch"),
        (
            {"trainer.max_epochs": 2, "trainer.val_check_interval": 4, "trainer.check_val_every_n_epoch": None},
            6,
            [4],
            "after every 4 optimizer step(s) of the run; the last one after step 4 of 6",
        ),
        ({"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 2}, 9, [6], "after step 6 of 9"),
        (
            {"model.objective": "AOT", "data.micro_batch": 1, "trainer.max_steps": 1, "trainer.max_epochs": -1},
            1,
            [1],
            "warning     AOT compares the pairs of a micro-batch, and each has one pair: raise data.micro_batch",
        ),
        (
            {"model.objective": "MRPO", "trainer.max_steps": 1, "trainer.max_epochs": -1},
            1,
            [1],
            "note        a mixture of one reference is that reference alone: list more in model.references",
        ),
    ],
    ids=str,
)
def test_the_first_lines_say_the_steps_that_are_taken(
    tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str], limits, end, validated, words
):
    run, seen = build(str(ROOT / "configs" / "dpo.yaml"), options(tmp_path, policy_folder) | limits), Seen()
    run.trainer.callbacks.append(seen)
    run.fit()
    assert run.trainer.global_step == end
    assert seen.validated == validated == seen.promised.validated_at()
    assert words in capsys.readouterr().out


def test_check_warns_of_a_step_larger_than_the_data(tmp_path: Path, policy_folder: Path):
    values = options(tmp_path, policy_folder) | {"data.global_batch": 64}
    arguments = [f"--{name}={value}" for name, value in values.items()]
    check = Check("check")
    assemble(resolve([f"--config={ROOT / 'configs' / 'dpo.yaml'}", *arguments], "check"), "check", []).before_training(
        check.run, check.refused
    )
    assert [f.says[:50] for f in check.report.findings if f.topic == "steps"] == [
        "data.global_batch 64 is more than the 20 training "
    ]
