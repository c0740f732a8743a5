"""Settings that transformers takes as a share of all steps keep their meaning, or a remark says what to set."""

import re
from typing import Any

import pytest
import yaml
from transformers import TrainerState, TrainingArguments

from lit_pref.errors import UsageError
from lit_pref.porting.configuration import yaml_of
from lit_pref.porting.steps import LOGGING_STEPS, number_of
from lit_pref.run.config import resolve


def trainer_of(text: str) -> tuple[dict[str, Any], str]:
    """Return the trainer's options of a ported configuration and its comments, each remark on one line."""
    written = yaml_of(text)
    return yaml.safe_load(written)["trainer"], re.sub(r"\n# +", " ", written)


def every(text: str) -> tuple[Any, Any]:
    """Return the interval between validations and the epochs that it counts in, of which null is the whole run."""
    trainer = trainer_of(f"eval_strategy=steps,{text}")[0]
    return trainer.get("val_check_interval"), trainer.get("check_val_every_n_epoch", 1)


def test_a_number_of_steps_counts_those_of_the_run():
    assert every("eval_steps=50") == every("eval_steps=50.0") == (50, None)
    assert every("eval_steps=1.0") == (1, None), "1.0 is one step in transformers, and an epoch in Lightning"
    assert every("logging_steps=20") == (20, None) and every("beta=0.1") == (LOGGING_STEPS, None)


@pytest.mark.parametrize(
    ("text", "interval", "epochs"),
    [
        ("eval_steps=0.1", 0.3, 1),
        ("eval_steps=0.25,num_train_epochs=2", 0.5, 1),
        ("eval_steps=0.25,num_train_epochs=4", 1.0, 1),
        ("eval_steps=0.5,num_train_epochs=4", None, 2),
        ("eval_steps=0.1,max_steps=25", 3, None),
    ],
)
def test_a_share_of_all_steps_is_one_of_an_epoch_times_the_epochs(text: str, interval: float | None, epochs: int):
    assert every(text) == (interval, epochs)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("eval_steps=0.1", r"share of an epoch, 0\.3, counted from the beginning of each epoch.*give max_steps"),
        ("eval_steps=0.5", r"of 1\.5 epochs: write that number of steps as trainer\.val_check_interval"),
        ("logging_steps=0.5", r"trainer\.log_every_n_steps is a number of them: write that number, or give max_steps"),
        ("save_steps=0.1", "`every` of Checkpoints is a number of them: write that number, or give max_steps"),
    ],
)
def test_a_share_without_a_counterpart_is_remarked_on(text: str, sentence: str):
    assert re.search(f"{text}: it is a share of all optimizer steps, .*{sentence}", remarks := of_steps(text)), remarks
    assert "a share of all optimizer steps" not in of_steps(f"{text},max_steps=25")
    trainer = trainer_of(f"eval_strategy=steps,{text}")[0]
    assert "log_every_n_steps" not in trainer and "callbacks" not in trainer


def of_steps(text: str) -> str:
    return trainer_of(f"eval_strategy=steps,{text}")[1]


def test_a_share_that_divides_each_epoch_needs_no_remark():
    for text in ("eval_steps=0.25,num_train_epochs=2", "eval_steps=0.5,num_train_epochs=4"):
        assert "share of all" not in of_steps(text)


@pytest.mark.parametrize("value", [1, 7, 7.0, 0.5, 0.1, 0.01])
def test_steps_are_those_of_the_installed_transformers(value: float):
    theirs = TrainerState()
    arguments = TrainingArguments(logging_steps=value, save_steps=value, eval_strategy="steps", report_to="none")
    theirs.compute_steps(arguments, 25)
    assert number_of(value, {"max_steps": 25}) == theirs.eval_steps == theirs.save_steps == theirs.logging_steps
    assert number_of(0.5, {"max_steps": -1}) is None


def test_steps_of_logs_and_checkpoints_are_whole_numbers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    text = "eval_strategy=steps,eval_steps=0.5,logging_steps=4.0,save_steps=0.1,max_steps=25"
    (tmp_path / "run.yaml").write_text(yaml_of(text))
    trainer = resolve(["--config", str(tmp_path / "run.yaml")]).trainer
    assert (trainer.log_every_n_steps, trainer.callbacks[0].init_args.every) == (4, 3)
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (13, None)


def test_a_warm_up_is_that_of_the_setting_that_transformers_reads():
    def warmup(text: str) -> float:
        return yaml.safe_load(yaml_of(text))["model"]["schedule"]["init_args"]["warmup"]

    assert (warmup("beta=0.1"), warmup("warmup_steps=0.1"), warmup("warmup_ratio=0.1")) == (0, 0.1, 0.1)
    assert (warmup("warmup_steps=10"), warmup("warmup_steps=0.1,max_steps=25")) == (10, 3)
    assert warmup("warmup_steps=10,warmup_ratio=0.5") == 10
    assert warmup("warmup_ratio=1.0,max_steps=25") == 25
    with pytest.raises(UsageError, match=r"warmup_ratio is 1\.0, .* give warmup_steps instead"):
        yaml_of("warmup_ratio=1.0")
