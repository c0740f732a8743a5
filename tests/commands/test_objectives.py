"""`objectives`: the list, its filters, one objective in detail, and configurations of TRL's trainers as ours."""

import dataclasses
import re
import sys
from typing import Any

import pytest
import yaml
from conftest import ROOT

from lit_pref import describing
from lit_pref.__main__ import main
from lit_pref.commands import objective_texts
from lit_pref.commands.objectives import Need, objectives
from lit_pref.errors import UsageError, UserError
from lit_pref.hints import advice, our_option
from lit_pref.objectives.mmpo import MMPO
from lit_pref.porting.arguments import arguments_of
from lit_pref.porting.configuration import CONVERSIONS, DEFAULTS, READ_WITH_OTHERS, SAME, yaml_of
from lit_pref.porting.losses import LOSSES
from lit_pref.porting.objective import OF_LOSS
from lit_pref.porting.script import LORA, LORA_DEFAULTS, MODEL
from lit_pref.run.config import resolve

sys.path.append(str(ROOT / "tools"))
from write_from_trl import configurations, of_scripts, place, row

KNOWN = describing.objectives()


def said(capsys: pytest.CaptureFixture[str], *names: str, **options: Any) -> str:
    objectives(*names, **options)
    return capsys.readouterr().out


def listed(text: str) -> list[str]:
    return re.findall(r"^  (\w+) ", text, flags=re.MULTILINE)


def test_all_objectives_are_listed_by_family(capsys: pytest.CaptureFixture[str]):
    text = said(capsys)
    assert listed(text) == list(KNOWN) and len(KNOWN) >= 17
    shown = [line for line in text.splitlines() if line in describing.FAMILIES]
    assert shown == [family for family in describing.FAMILIES if any(cls.family == family for cls in KNOWN.values())]
    assert "arXiv 2410.03145 · checked against the authors' code · needs a reference, margins" in text


def test_the_words_of_needs_are_those_of_the_command():
    assert set(Need.__args__) == set(describing.NEEDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "has", "lacks"),
    [
        ({"needs": "margin"}, "MMPO", "DPO"),
        ({"needs": "live_reference"}, "EpsilonDPO", "MRPO"),
        ({"needs": "extra_response"}, "SELM", "DPO"),
        ({"needs": "extra_response"}, "SELM", "ConditionalContrast"),
        ({"needs": "lists"}, "RankNet", "BradleyTerry"),
        ({"needs": "reward_model"}, "GPM", "DPO"),
        ({"needs": "references"}, "MRPO", "DPO"),
        ({"reference_free": True}, "SFT", "DPO"),
        ({"trl": True}, "DPO", "MRPO"),
        ({"family": "lists"}, "ListMLE", "DPO"),
        ({"family": "basic", "reference_free": True}, "SFT", "DPO"),
    ],
    ids=str,
)
def test_a_filter_keeps_those_that_it_names(
    options: dict[str, Any], has: str, lacks: str, capsys: pytest.CaptureFixture[str]
):
    names = listed(said(capsys, **options))
    assert has in names and lacks not in names


@pytest.mark.parametrize("name", KNOWN)
def test_each_is_explained_with_yaml_that_builds_it(name: str, capsys: pytest.CaptureFixture[str]):
    text = said(capsys, name)
    about = describing.docstring(KNOWN[name])
    assert about.summary.split()[0] in text and "When" in text and "Source" in text and "Needs" in text
    copied = yaml.safe_load(text.partition("YAML to copy")[2].partition("\n\n")[2])
    objective = copied["model"]["objective"]
    assert (objective if isinstance(objective, str) else objective["class_path"]) == name
    assert yaml.safe_load(objective_texts.generated(KNOWN[name]))["model"]["objective"]["class_path"] == name


PARTS = [(kind, cls) for kind, members in describing.part_kinds().items() for cls in members]


@pytest.mark.parametrize(("kind", "cls"), PARTS, ids=[cls.__name__ for _, cls in PARTS])
def test_each_part_is_explained_with_yaml_that_names_it(kind: str, cls: type, capsys: pytest.CaptureFixture[str]):
    text = said(capsys, cls.__name__.lower())
    assert text.startswith(f"{cls.__name__} · a part of objectives ({kind}): {objective_texts.KINDS[kind]}\n")
    assert describing.docstring(cls).summary.split()[0] in text and "\n\nNeeds   " in text
    assert all(f"\n  {argument.name} " in text for argument in describing.arguments(cls))
    objective = yaml.safe_load(text.partition("YAML to copy")[2].partition("Note")[0])["model"]["objective"]
    part = objective["init_args"][kind][0] if kind == "terms" else objective["init_args"][kind]
    assert (part if isinstance(part, str) else part["class_path"]) == cls.__name__


def test_a_term_says_what_data_and_parts_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    text = said(capsys, "Optimism")
    assert "Needs   an extra response\n" in text and "terms+=Optimism; docs" in text and "alpha: 0.001" in text
    assert "it needs other parts beside it: DPO: ReverseKL is infinite" in said(capsys, "ReverseKL")
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    copied = said(capsys, "Optimism").partition("YAML to copy")[2]
    config = resolve(["--config", copied, "--model.policy.path", "x"])
    assert config.model.objective.init_args.terms[0].class_path.endswith("Optimism")


def test_generated_yaml_is_a_configuration(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    for name in ("MRPO", "RankNet", "MMPO"):
        (tmp_path / f"{name}.yaml").write_text(objective_texts.generated(KNOWN[name]))
        config = resolve(["--config", str(tmp_path / f"{name}.yaml")])
        assert config.model.objective.class_path.rpartition(".")[2] == name


def test_an_unknown_name_or_family_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError, match=r"no objective 'MMOP'; `objectives` lists all \d+; did you mean MMPO"):
        objectives("MMOP")
    with pytest.raises(UsageError, match=r"no objective 'Optimsm'; .*; did you mean Optimism"):
        objectives("Optimsm")
    for name in ("TRDPO", "tr-dpo", "sync_ref_model"):
        with pytest.raises(UsageError, match=rf"{name} is not an objective of its own; .*MovingReference.*trdpo\.yaml"):
            objectives(name)
    with pytest.raises(
        UsageError, match=r"no objective 'exo_pair'; .*; TRL's loss_type exo_pair is EXO \(DPOTrainer\)"
    ):
        objectives("exo_pair")
    with pytest.raises(UsageError, match=r"--family 'list' is none of .*; did you mean lists"):
        objectives(family="list")
    with pytest.raises(SystemExit) as ended:
        main(["objectives", "--needs", "margins"])
    assert ended.value.code == 2 and "margin" in capsys.readouterr().err


def test_the_file_of_each_objective_is_named(capsys: pytest.CaptureFixture[str]):
    for name, cls in KNOWN.items():
        assert f"class {name}(" in (ROOT / describing.file_of(cls)).read_text()
    assert "Code    lit_pref/objectives/rdpo.py\n" in said(capsys, "RDPO")


def test_case_and_hyphens_of_a_name_do_not_matter(capsys: pytest.CaptureFixture[str]):
    for name, written in (("BetaDPO", "beta-dpo"), ("DPO", "dpo"), ("APOZero", "apo_zero")):
        assert said(capsys, written) == said(capsys, name)


def test_needs_are_one_phrase_each_and_no_own_formulation_claims_a_paper(capsys: pytest.CaptureFixture[str]):
    text = said(capsys, "TDPO")
    assert "Needs   a reference in memory, with the policy's vocabulary\n" in text
    assert "TDPO" in listed(said(capsys, needs="reference"))
    assert all("derived from the equations" in said(capsys, name) for name in ("Pairwise", "SquaredMargin", "Weighted"))
    assert "a reconstruction" in said(capsys, "AlphaPO") and "extra response" not in said(capsys, "ConditionalContrast")


@pytest.mark.parametrize(
    ("names", "options", "sentence"),
    [
        (("TDPO",), {"needs": "margin", "trl": True}, "--needs, --trl cannot filter what is named"),
        (("TDPO",), {"family": "lists"}, "--family cannot filter .* give either names or filters"),
        (("TDPO",), {"from_trl": "beta=0.1"}, "--from_trl translates .* drop TDPO"),
        ((), {"from_trl": "beta=0.1", "reference_free": True}, "--from_trl translates .* drop --reference_free"),
        (
            (),
            {"from_trl": "DPOConfig(sync_ref_model=True, precompute_ref_log_probs=True)"},
            "the reference follows the policy, so its log-probs cannot be computed beforehand .*: leave one",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(names: tuple[str, ...], options: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        objectives(*names, **options)


def test_sections_of_a_docstring_are_read():
    about = describing.docstring(MMPO)
    assert about.summary.startswith("Margin matching: the loss fits")
    assert about.equation.startswith("L = -p log sigmoid(x)")
    assert about.when.startswith("the data say") and "**" not in about.when
    assert describing.papers(about.source) == ["2410.03145"]
    assert list(about.arguments) == ["beta", "gamma", "parts"]


# From TRL


def test_the_arguments_of_a_call_and_of_a_list_are_read():
    assert arguments_of("loss_type=ipo,beta=1e-1") == ("dpo", {"loss_type": "ipo", "beta": 0.1})
    assert arguments_of("trainer=orpo, bf16=false, max_length=none")[1] == {"bf16": False, "max_length": None}
    call = "trl.CPOConfig(loss_type='simpo', cpo_alpha=0.0, output_dir='runs/a b')"
    assert arguments_of(call) == ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "output_dir": "runs/a b"})
    assert arguments_of("loss_type=[sigmoid, sft]")[1] == {"loss_type": ["sigmoid", "sft"]}
    assert arguments_of("center_rewards_coefficient=0.01")[0] == "reward"


def test_a_file_of_arguments_is_read(tmp_path: Any):
    (tmp_path / "mine.yaml").write_text("loss_type: hinge\nbeta: 0.2\n")
    assert arguments_of(str(tmp_path / "mine.yaml")) == ("dpo", {"loss_type": "hinge", "beta": 0.2})
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        arguments_of("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("beta", "cannot be read: write NAME=VALUE"),
        ("output_dir=./x", "paths and other texts in quotes"),
        ("KTOConfig(beta=0.1)", "KTOConfig is none of DPOConfig.*: only trainers of pairs have a counterpart"),
        ("DPOTrainer(beta=0.1)", "DPOTrainer is none of DPOConfig.*; did you mean DPOConfig"),
        ("trainer=kto", "trainer 'kto' is none of dpo, cpo, orpo, reward"),
        ("loss_typ=ipo", "DPO has no argument 'loss_typ'; did you mean loss_type"),
        ("loss_type=ip", "loss_type 'ip' is none of .*; did you mean ipo"),
        ("f_divergence_type=js", "f_divergence_type 'js' is none of reverse_kl"),
        ("loss_type=ipo,ld_alpha=0.5", "ld_alpha with loss_type ipo has no counterpart"),
        ("loss_type=nca_pair,use_weighting=true", "use_weighting with loss_type nca_pair has no counterpart"),
        ("f_divergence_type=alpha_divergence,f_alpha_divergence_coef=2.0", r"AlphaDivergence has those in \[0, 1\)"),
        ("optim=adamw_8bit", "optim 'adamw_8bit' is no optimizer of torch"),
        ("lr_scheduler_type=polynomial", "lr_scheduler_type 'polynomial' is none of linear"),
        ("num_train_epochs=0.5", r"num_train_epochs is 0\.5, .*give max_steps"),
        ("num_train_epochs=2.5,max_steps=-1", r"num_train_epochs is 2\.5"),
        ("lr_scheduler_kwargs='none of them'", "is no mapping of names to values"),
        ("loss_type=[sigmoid,sft],loss_weights=[1.0]", "2 losses have 1 loss_weights"),
    ],
)
def test_what_cannot_be_translated_is_refused_in_a_sentence(text: str, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        yaml_of(text)


def test_a_configuration_is_one_of_a_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    text = "loss_type=sigmoid,beta=0.05,gradient_accumulation_steps=4,lr_scheduler_type=cosine,warmup_steps=10,"
    text += "max_grad_norm=0.5,seed=7,max_length=512,save_steps=50,precompute_ref_log_probs=true,neftune_noise_alpha=5,"
    text += "model_init_kwargs={'dtype': 'bfloat16', 'attn_implementation': 'sdpa'},use_cpu=true,label_smoothing=0.1"
    (tmp_path / "run.yaml").write_text(yaml_of(text))
    comments = [line for line in (tmp_path / "run.yaml").read_text().splitlines() if line.startswith("#")]
    assert any("there is no noise on embeddings" in line for line in comments)
    assert any("TRL does not read label_smoothing in this loss" in line for line in comments)
    config = resolve(["--config", str(tmp_path / "run.yaml")])
    assert config.model.objective.init_args.beta == 0.05 and config.model.reference_store is True
    assert (config.data.global_batch, config.data.micro_batch, config.data.max_length) == (32, 8, 512)
    assert config.data.val_fraction == 0.0 and config.seed_everything == 7
    assert config.model.optimizer.init_args.lr == 1e-6 and config.model.optimizer.init_args.eps == 1e-8
    assert config.model.schedule.init_args.warmup == 10 and config.model.schedule.class_path.endswith("Cosine")
    assert config.trainer.gradient_clip_val == 0.5 and config.trainer.precision == "bf16-mixed"
    assert (config.model.policy.dtype, config.model.policy.attention) == ("bfloat16", "sdpa")
    assert config.trainer.callbacks[0].init_args.every == 50 and config.trainer.max_epochs == 3


RPO_NOW = "loss_type=[sigmoid,sft],loss_weights=[1.0,0.5]"


def ported(text: str) -> tuple[dict[str, Any], str]:
    """Return the configuration of a run and its comments, each remark on one line."""
    written = yaml_of(text)
    return yaml.safe_load(written), re.sub(r"\n# +", " ", written)


def test_a_file_of_a_trl_script_names_model_adapters_and_data_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    script = {"model_name_or_path": "runs/sft", "dtype": "bfloat16", "attn_implementation": "sdpa", "use_peft": True}
    script |= {"lora_r": 8, "dataset_name": "owner/pairs", "dataset_train_split": "train_prefs", "load_in_4bit": True}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(script))
    (tmp_path / "run.yaml").write_text(yaml_of(str(tmp_path / "trl.yaml")))
    config = resolve(["--config", str(tmp_path / "run.yaml")])
    policy, lora = config.model.policy, config.model.policy.lora
    assert (policy.path, policy.dtype, policy.attention) == ("runs/sft", "bfloat16", "sdpa")
    assert (lora.r, lora.alpha, lora.dropout) == (8, 32.0, 0.05) and config.data.train == "owner/pairs:train_prefs"
    splits = ported("dataset_name='owner/pairs',eval_strategy=steps,eval_steps=50")[0]["data"]
    assert (splits["train"], splits["val"]) == ("owner/pairs:train", "owner/pairs:test")
    once_an_epoch = ported("eval_strategy=epoch,eval_steps=3")[0]  # TRL does not read eval_steps then
    assert "val_check_interval" not in once_an_epoch["trainer"]
    assert ported("eval_strategy=steps,eval_steps=3")[0]["trainer"]["val_check_interval"] == 3
    comments = ported(str(tmp_path / "trl.yaml"))[1]
    assert "If the file is that of another trainer, add `trainer: reward`" in comments
    assert "load_in_4bit=True: weights are not quantised" in comments and "model_name_or_path" not in comments
    assert "lora_target_modules: peft chooses layers by the architecture" in comments
    alone = ported("lora_r=8,dataset_name='pairs.jsonl',dataset_train_split=train,dtype=auto")
    assert "lora" not in alone[0]["model"]["policy"] and alone[0]["data"]["train"] == "pairs.jsonl"
    assert "lora_r=8: here it is model.policy.lora.r" in alone[1] and "dtype=auto: here it is" in alone[1]


def test_the_defaults_of_adapters_are_those_of_the_installed_trl():
    from trl import ModelConfig

    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    assert {name: fields[name] for name in LORA_DEFAULTS} == LORA_DEFAULTS and not fields["use_peft"]
    assert {*MODEL, *LORA} <= fields.keys()
    assert all(map(place, of_scripts()))


def test_steps_override_epochs_as_in_transformers():
    assert ported("num_train_epochs=2.5,max_steps=100")[0]["trainer"]["max_epochs"] == -1
    assert ported("num_train_epochs=2.0")[0]["trainer"]["max_epochs"] == 2


def test_the_cross_entropy_of_earlier_releases_is_a_loss_of_its_own_as_it_is_now():
    earlier, now = (ported(text)[0]["model"]["objective"] for text in ("rpo_alpha=0.5", RPO_NOW))
    assert earlier == now and earlier["init_args"]["weights"] == [1.0, 0.5]
    assert "rpo_alpha" not in ported("rpo_alpha=0.5")[1]


@pytest.mark.parametrize("arguments", ["{'min_lr': 1e-7}", "{'min_lr_rate': 0.1}"])
def test_a_least_rate_is_the_floor_of_the_schedule_that_reads_it(arguments: str):
    given = f"learning_rate=1e-6,lr_scheduler_kwargs={arguments}"
    config, comments = ported(f"{given},lr_scheduler_type=cosine_with_min_lr")
    assert config["model"]["schedule"]["init_args"]["floor"] == pytest.approx(0.1)
    assert "lr_scheduler_kwargs" not in comments
    config, comments = ported(f"{given},lr_scheduler_type=linear")
    assert "floor" not in config["model"]["schedule"].get("init_args", {})
    assert "lr_scheduler_kwargs: linear reads no min_lr" in comments


def test_a_setting_without_a_place_is_remarked_on():
    assert (
        "lr_scheduler_kwargs: cosine reads no num_cycles here"
        in ported("lr_scheduler_type=cosine,lr_scheduler_kwargs={'num_cycles': 2}")[1]
    )
    config, comments = ported("max_length=null")
    assert "max_length=None: TRL cuts no pair then" in comments and "max_length" not in config["data"]


@pytest.mark.parametrize(
    ("text", "sentence", "without"),
    [
        ("trainer=cpo,loss_type=simpo", "with cpo_alpha above 0", ",cpo_alpha=0.0"),
        ("trainer=cpo,loss_type=sigmoid", "with cpo_alpha above 0", ",cpo_alpha=0.0"),
        ("loss_type=exo_pair", "the paper's 0.001", ",label_smoothing=0.1"),
    ],
)
def test_a_difference_is_printed_only_where_it_applies(text: str, sentence: str, without: str):
    assert sentence in ported(text)[1] and sentence not in ported(text + without)[1]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.trainer}-{loss.name}")
def test_every_loss_is_translated(loss: Any):
    text = f"trainer={loss.trainer}" + (f",loss_type={loss.name}" if loss.name else "")
    (objective,) = [yaml.safe_load(yaml_of(text))["model"]["objective"]]
    assert (objective if isinstance(objective, str) else objective["class_path"]) == loss.objective


def test_every_argument_of_the_installed_trl_has_a_place():
    for name, fields in configurations().items():
        assert len(fields) > 100
        missing = [field for field in fields if not place(field) and field not in OF_LOSS]
        assert not missing, f"{name}: {missing}"


def test_the_place_of_an_argument_is_that_of_its_losses():
    assert all(name in place("label_smoothing") for name in ("RobustDPO", "EXO", "AOT"))
    assert "MovingReference" in place("sync_ref_model") and "Pretrained" not in place("sync_ref_model")


def test_a_loss_is_shown_with_the_names_of_its_settings():
    rows = {loss.title: row(loss) for loss in LOSSES}
    assert "`beta: beta, epsilon: label_smoothing`" in rows["DPO robust"]
    assert "alpha: alpha" in rows["CPO alphapo"] and "cpo_alpha: cpo_alpha, score:" in rows["CPO hinge"]
    assert not any(": 0.0" in row or "null" in row for row in rows.values())


def test_the_defaults_are_those_of_the_installed_trl():
    classes = dict(zip(("dpo", "cpo", "orpo", "reward"), configurations().values(), strict=True))
    for trainer, defaults in DEFAULTS.items():
        for name, value in defaults.items():
            field = classes[trainer][name]
            theirs = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            assert str(getattr(theirs, "value", theirs)) == str(value), (trainer, name)
        assert {name for name in classes[trainer] if name in OF_LOSS} == {name for name in defaults if name in OF_LOSS}


def test_every_translated_argument_is_one_of_trl_or_of_its_past():
    fields = set().union(*configurations().values())
    past = {"warmup_ratio", "max_prompt_length"}
    assert {*SAME, *CONVERSIONS, *READ_WITH_OTHERS} <= fields | past
    assert all(our_option(name) or advice(name) for name in fields - OF_LOSS)
