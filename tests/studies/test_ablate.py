"""A study of real runs in this process: planned, trained, resumed from a rung, reported; and what is refused first."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, write_pairs
from studies.computed_trials import ended

from lit_pref.__main__ import main
from lit_pref.callbacks.gold_reward import GoldReward
from lit_pref.commands.ablate import ablate
from lit_pref.errors import Diverged, UsageError
from lit_pref.modules.evaluation import Evaluation
from lit_pref.modules.schedules import Cosine, Flat
from lit_pref.objectives.dpo import DPO
from lit_pref.run import build
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.studies.boards import scalar, write_events
from lit_pref.studies.cells import cells_of
from lit_pref.studies.measures import refuse_unknown_measures
from lit_pref.studies.plan import plan_of
from lit_pref.studies.plan_file import Planned, read_plan
from lit_pref.studies.plan_refusals import refuse_early_rungs, refuse_equal, refuse_free
from lit_pref.studies.reading import read_study
from lit_pref.studies.slurm import Slurm, WorkerJob, forget_slurm_job
from lit_pref.studies.study import Axis, Study
from lit_pref.studies.training import train
from lit_pref.studies.trial import Trial, outcomes_of

pytestmark = pytest.mark.filterwarnings("ignore")
MEASURE = {"primary": {"metric": "val/accuracy", "goal": "max"}, "also": ["val/ece", "peak_memory", "time"]}


@pytest.fixture
def study_file(write_study: Callable[..., Path], policy_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study whose base is a run of two steps of a tiny policy."""
    write_pairs(tmp_path / "pairs.jsonl", 16)
    write_pairs(tmp_path / "val.jsonl", 8, seed=1)
    base = yaml.safe_load((ROOT / "configs" / "dpo.yaml").read_text())
    base["model"]["policy"] = {"path": str(policy_folder)}
    base["model"]["optimizer"]["init_args"]["lr"] = 0.01
    base["data"] = {"train": "pairs.jsonl", "val": "val.jsonl", "global_batch": 8}
    base["trainer"] |= {"accelerator": "cpu", "log_every_n_steps": 1}
    base["model"]["schedule"]["init_args"]["warmup"] = 0
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))

    def write(**changes: Any) -> Path:
        axes = {"model.objective.target": {"hard": "Hard", "margin": "MarginTarget"}}
        return write_study(**{"axes": axes, "seeds": [0, 1], "measure": MEASURE, **changes})

    return write


def ended_with(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    return read_checkpoint(newest)["state_dict"]


def test_a_study_is_planned_trained_over_a_rung_and_reported(
    study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Evaluation, "_draw", lambda *_: None)  # reliability diagrams take most of such short runs
    file = str(study_file(rungs={"strategy": "one_rung", "at": 0.5, "keep": 1}))
    assert ended_with("ablate", "report", "--config", file) == 2
    assert "has no trials of study/study.yaml as it is now: train them first" in capsys.readouterr().err
    assert ended_with("ablate", "--config", file, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "trials      4 trials = 2 cells x 2 seeds; 0 ended" in said and "target=margin  (2 steps)" in said
    assert "with one worker, from a few steps of the first cell; about " in said
    assert not Path("study/runs").exists()

    assert ended_with("ablate", "--config", file) == 0
    said = capsys.readouterr().out
    assert "VERDICT" in said and "tensorboard --logdir study/tb" in said
    outcomes = outcomes_of(study := read_study(file))
    assert sorted(outcome.state for outcome in outcomes.values()) == ["finished"] * 2 + ["stopped"] * 2
    kept = next(outcome for outcome in outcomes.values() if outcome.state == "finished" and outcome.seed == 1)
    trial = Trial(study.folder, kept.name, 1)
    assert (
        kept.repeat
        == f"python -m lit_pref fit --config={trial.config} --seed_everything=1 --run_dir={trial.run_dir}-again"
    )
    assert {"val/rewards/accuracies", "val/calibration/ece", "train/loss"} <= set(kept.curves)
    assert "objective   DPO" in trial.log.read_text()
    # The trial stopped at its rung and resumed; an ordinary run of the same cell and seed has the same bits.
    build(str(trial.config), {"seed_everything": 1, "run_dir": "alone", "print_summary": False}).fit()
    alone, resumed = weights(Path("alone")), weights(trial.run_dir)
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)

    assert ended_with("ablate", "status", "--config", file) == 0
    assert "ended       2\nstopped     2" in capsys.readouterr().out
    assert ended_with("ablate", "reprt", "--config", file) == 2
    assert "unknown command 'ablate reprt'" in (err := capsys.readouterr().err) and "did you mean ablate report" in err


def test_workers_are_submitted_after_the_plan_from_a_machine_without_the_gpus_of_the_runs(
    study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    file, base = str(study_file()), yaml.safe_load(Path("base.yaml").read_text())
    base["trainer"] |= {"accelerator": "gpu", "devices": "auto", "precision": "bf16-mixed"}
    Path("base.yaml").write_text(yaml.safe_dump(base))
    submitted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "lit_pref.commands.ablate.submit", lambda *given: submitted.append(given) or ["4711_0", "4711_1"]
    )
    words = "--slurm.workers 12 --slurm.timeout_min 240 --slurm.gpus_per_node 8 --slurm.partition a100"
    assert ended_with("ablate", "--config", file, *words.split()) == 0
    said = capsys.readouterr().out
    assert said.index("trials      4 trials") < said.index(
        "submitted   2 worker job(s): 4711_0, 4711_1; their logs are in"
    )
    assert f"Next: look at the trials\n  python -m lit_pref ablate status --config {file}" in said
    ((study, slurm, job, most),) = submitted
    assert (slurm, most) == (Slurm(12, 240, gpus_per_node=8, partition="a100"), 4)
    assert job == WorkerJob(ablate, file)
    plan = read_plan(study)
    assert plan is not None and [cell.processes for cell in plan.cells] == [8, 8] and not plan.shared
    assert ended_with("ablate", "--config", file, "--slurm.partition", "a100") == 2
    assert "slurm.workers is missing" in capsys.readouterr().err


def test_the_commands_of_the_page_about_studies_run(
    study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study_file()  # the pairs, and a base that names them
    page = (ROOT / "docs" / "studies.md").read_text()
    example, several, *rungs = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    Path("configs").symlink_to(ROOT / "configs")
    Path("base.yaml").rename("my.yaml")
    Path("beta").mkdir()
    Path("beta", "study.yaml").write_text(example)

    def trained(trial: Trial, stop: int | None, cell: Planned) -> None:
        tags = ("val/rewards/accuracies", "val/kl_to_target", "val/calibration/ece", "train/peak_memory_gib")
        write_events(trial.run_dir, [scalar(tag, cell.steps, 0.5 + 0.01 * trial.seed) for tag in tags])

    monkeypatch.setattr("lit_pref.studies.training.train", trained)
    commands = re.findall(r"^python -m lit_pref (.*)$", page, flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert ended_with(*shlex.split(command)) == 0, command
    said = capsys.readouterr().out
    assert "12 trials (4 cells x 3 seeds)" in said and "VERDICT     nothing was varied: every cell has its base" in said
    for line in [line for line in rungs[0].splitlines() if line]:
        Path("beta", "study.yaml").write_text(example + line)
        assert read_study("beta/study.yaml").rungs.shares
    head, _, rest = example.partition("axes:")
    seeds = rest[rest.index("seeds:") : rest.index("compare:")]
    Path("beta", "study.yaml").write_text(head + several + seeds)
    assert [axis.name for axis in read_study("beta/study.yaml").axes] == ["method"]
    without_axes = re.sub(r"^(axes|compare):.*?(?=^\S)|^compare.*", "", example + "\n", flags=re.DOTALL | re.MULTILINE)
    Path("beta", "study.yaml").write_text(without_axes + rungs[1])
    assert read_study("beta/study.yaml").search is not None


def test_a_cell_that_cannot_be_built_and_seeds_that_decide_nothing_are_refused_before_training(
    study_file: Callable[..., Path],
):
    study = read_study(study_file(axes={"model.objective": ["DPO", "DOP"]}, compare=None))
    with pytest.raises(UsageError, match=r"the cell objective=DOP cannot be run: .*unknown class 'DOP'"):
        plan_of(study, share=False)
    study = read_study(study_file(axes={"data.seed": [0, 1]}, compare=None))
    with pytest.raises(UsageError, match="seeds: they change nothing in the cell seed=0, whose draws all have seeds"):
        plan_of(study, share=False)
    assert read_plan(study) is None


def test_an_axis_that_changes_nothing_is_refused(write_study: Callable[..., Path]):
    study = read_study(write_study(axes={"data.workers": [0, 1]}, compare=None))
    with pytest.raises(UsageError, match=r"data\.workers changes nothing that a trial trains"):
        refuse_free(study, study.axes[0])
    methods = {"a": {"data.workers": 0, "data.seed": 1}, "b": {"data.workers": 1, "data.seed": 2}}
    refuse_free(study, Axis("method", "method", methods, several=True))  # one of its settings decides something
    timed = {"primary": {"metric": "score", "goal": "max"}, "also": ["time"]}
    refuse_free(read_study(write_study(measure=timed)), study.axes[0])
    with pytest.raises(UsageError, match="workers: 0 and 1 give the same configuration"):
        refuse_equal(study, cells_of(study), ["same", "same"])


def test_a_rung_inside_the_warm_up_is_refused(write_study: Callable[..., Path]):
    study = read_study(write_study(rungs={"at": 0.2}))
    for schedule in (Flat(warmup=0.1), None, Cosine(warmup=0.1)):
        refuse_early_rungs(study, "cell", SimpleNamespace(total_steps=20, schedule=schedule))
    with pytest.raises(UsageError, match=r"step 4 of 20 .* lies in the warm-up of cell \(Flat\(warmup=0.5"):
        refuse_early_rungs(study, "cell", SimpleNamespace(total_steps=20, schedule=Flat(warmup=0.5)))


MEASURES: list[tuple[str, str]] = [
    ("val/acuracy", r"no trial writes val/acuracy; did you mean val/accuracy"),
    ("testbed/gold_sampled", "callback: add `- class_path: GoldReward`"),
    ("val/ece@p_true", "add p_true to data.columns of the base"),
    ("val/accuracy@reference0", r"no trial writes val/accuracy@reference0 \(val/rewards/accuracies@reference0\)"),
]


@pytest.mark.parametrize(("metric", "said"), MEASURES)
def test_a_measure_that_no_trial_writes_is_refused(write_study: Callable[..., Path], metric: str, said: str):
    measure = {"primary": {"metric": metric, "goal": "max"}}
    study = read_study(write_study(measure=measure))
    pair = SimpleNamespace(probability=None)
    pairs = type("Pairs", (list,), {"column": lambda self, name: [None]})([pair])
    data = SimpleNamespace(val_pairs=pairs, columns=[])
    module: Any = SimpleNamespace(data=data, references=[None], trainer=SimpleNamespace(callbacks=[]), objective=DPO())
    module.evaluation = SimpleNamespace(margin_bins=0)
    with pytest.raises(UsageError, match=said):
        refuse_unknown_measures(study, module)
    for known in ("val/ece", "time", "peak_memory", "val/kl_to_target", "val/calibration@target/brier"):
        refuse_unknown_measures(read_study(write_study(measure={"primary": {"metric": known, "goal": "min"}})), module)
    module.trainer.callbacks = [GoldReward()]
    module.data.columns = ["p_true"]
    module.references = [None, None]
    if metric != "val/acuracy":
        refuse_unknown_measures(study, module)
    data.val_pairs = type("Pairs", (list,), {})([])
    with pytest.raises(UsageError, match="the base run holds out no pairs"):
        refuse_unknown_measures(
            read_study(write_study(measure={"primary": {"metric": "val/ece", "goal": "min"}})), module
        )


def test_trials_of_another_configuration_are_not_counted(study_file: Callable[..., Path]):
    study = read_study(study_file())
    plan = plan_of(study, share=False)
    assert plan_of(study, share=False) == plan, "the plan is read again"
    cell = plan.cells[0]
    trial = Trial(study.folder, cell.name, 0)
    ended(trial, cell.labels).write(trial)
    with pytest.raises(UsageError, match=r"s0 was trained with another configuration than .*delete"):
        plan_of(study, share=False)


def test_a_run_of_several_processes_is_started_by_its_command_line(study: Study, monkeypatch: pytest.MonkeyPatch):
    started: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], env: dict[str, str], stdout: int, **options: Any) -> SimpleNamespace:
        started.append((command, env))
        os.write(stdout, b"lit_pref: the loss of 1 pair(s) is not finite at step 3: pairs.jsonl, line 1\n")
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr("lit_pref.studies.training.subprocess.run", run)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trial = Trial(study.folder, "target=hard", 1)
    with pytest.raises(Diverged, match="the loss of 1 pair"):
        train(trial, 1, Planned("target=hard", {"target": "hard"}, "", 2, processes=2))
    ((command, environment),) = started
    assert command[2:5] == ["lit_pref", "fit", f"--config={study.folder}/cells/target=hard.yaml"]
    assert {"--seed_everything=1", "--ckpt_path=last", "--stop_at_step=1", "--print_summary=false"} <= set(command)
    assert not any(name.startswith("SLURM_") for name in environment)
    forget_slurm_job()
    assert "SLURM_JOB_ID" not in os.environ
