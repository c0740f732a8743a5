"""Settings of the objective that a TRL trainer does not read are not dropped without a remark."""

import re

import pytest
import yaml

from lit_pref.errors import UsageError
from lit_pref.porting.configuration import yaml_of


def remarks_of(text: str) -> str:
    """Return the comments of a ported configuration, each remark on one line."""
    return re.sub(r"\n# +", " ", yaml_of(text))


@pytest.mark.parametrize("trainer", ["cpo", "orpo", "reward"])
@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("rpo_alpha=1.0", "here it is model.objective.terms"),
        ("sync_ref_model=true", "MovingReference"),
        ("use_weighting=true", "here it is model.objective.weight"),
        ("loss_weights=[0.5]", "here it is model.objective.weights"),
        ("ld_alpha=0.5", "here it is model.objective.tokens"),
    ],
)
def test_a_setting_of_another_trainer_is_remarked_on(trainer: str, setting: str, instead: str):
    name = setting.partition("=")[0]
    title = {"reward": "Reward"}.get(trainer, trainer.upper())
    text = remarks_of(f"trainer={trainer},{setting}")
    assert re.search(rf"{name}=\S+: TRL's {title} trainer has no such argument; .*{instead}", text), text
    objective = yaml.safe_load(yaml_of(f"trainer={trainer}"))["model"]["objective"]
    assert yaml.safe_load(yaml_of(f"trainer={trainer},{setting}"))["model"]["objective"] == objective
    assert name not in remarks_of(f"{setting},loss_type=[sigmoid]")


def test_a_setting_that_is_read_only_with_another_one_is_remarked_on_without_it():
    for setting, other in (
        ("ref_model_sync_steps=5", "sync_ref_model=True"),
        ("ref_model_mixup_alpha=0.5", "sync_ref_model=True"),
        ("f_alpha_divergence_coef=0.3", "f_divergence_type=alpha_divergence"),
    ):
        assert f"{setting}: TRL reads it only with {other}; " in remarks_of(setting)
        assert "reads it only with" not in remarks_of(f"{setting},{other}")


def test_the_cross_entropy_of_earlier_releases_comes_on_top_of_the_loss_type_and_is_remarked_on_once():
    text = remarks_of("loss_type=[sigmoid,sft],rpo_alpha=0.5")
    assert text.count("rpo_alpha=0.5: it is the loss type sft of earlier releases, on top of the given one.") == 1
    assert text.count("DPO sft: TRL takes the mean") == 1
    objective = yaml.safe_load(text)["model"]["objective"]
    assert objective["init_args"] == {
        "objectives": [{"class_path": "DPO", "init_args": {"beta": 0.1}}, "SFT", "SFT"],
        "weights": [1.0, 1.0, 0.5],
    }


def test_a_loss_type_of_a_trainer_with_one_loss_is_refused():
    with pytest.raises(UsageError, match="TRL's ORPO trainer has one loss and no loss_type: leave it out"):
        yaml_of("trainer=orpo,loss_type=sigmoid")
