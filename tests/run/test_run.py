"""A run built from Python: what `build` takes, what a `Run` does, and that it does the same as the command line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, write_pairs

from lit_pref.__main__ import main
from lit_pref.commands.run_options import TOP_LEVEL
from lit_pref.errors import UsageError, UserError
from lit_pref.modules.preference import PreferenceModule
from lit_pref.run import Run, build
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.config import run_parser

pytestmark = pytest.mark.filterwarnings("ignore")
MMPO = str(ROOT / "configs" / "mmpo.yaml")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path) -> dict[str, Any]:
    """What a run of three steps needs beside its method, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "pairs.jsonl", 24)
    options: dict[str, Any] = {"model.policy.path": str(policy_folder), "data.train": "pairs.jsonl"}
    return options | {"data.global_batch": 8, "trainer.accelerator": "cpu", "print_summary": False}


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    newest = sorted((Path(run_dir) / "checkpoints").iterdir())[-1]
    return read_checkpoint(newest)["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_of_one_process_and_the_command_line_end_with_the_same_bits(options: dict[str, Any]):
    build(MMPO, options | {"run_dir": "one"}).fit()
    exported = build(MMPO, options | {"run_dir": "two"}).fit()
    assert exported is not None and (exported.folder / "model.safetensors").exists()
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", MMPO, *(f"--{k}={v}" for k, v in options.items()), "--run_dir", "three"])
    assert ended.value.code == 0
    assert same(weights("one"), weights("two")) and same(weights("one"), weights("three"))
    one, three = (Path(name, "config.yaml").read_text() for name in ("one", "three"))
    assert one == three


def test_a_run_stops_and_resumes_to_the_same_bits_and_is_not_overwritten(options: dict[str, Any]):
    build(MMPO, options | {"run_dir": "whole"}).fit()
    build(MMPO, options | {"run_dir": "parts", "stop_at_step": 1}).fit()
    with pytest.raises(UsageError, match=r"parts already contains a run; resume it \(--ckpt_path last\)"):
        build(MMPO, options | {"run_dir": "parts"}).fit()
    resumed = build(MMPO, options | {"run_dir": "parts"})
    resumed.fit(ckpt_path="last")
    assert same(weights("whole"), weights("parts"))
    numbers = resumed.validate(ckpt_path="last")
    assert numbers == build(MMPO, options | {"run_dir": "whole"}, "validate").validate("last")
    assert resumed.export("folder").folder == Path("folder")


def test_a_resumed_run_keeps_the_record_of_both_parts_and_names_its_own_configuration(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    build(MMPO, options | {"run_dir": "parts", "stop_at_step": 1, "print_summary": True}).fit()
    assert "config       parts/config.yaml  (repeats the run)" in capsys.readouterr().out
    changed = {"run_dir": "parts", "print_summary": True, "model.optimizer.weight_decay": 0.2}
    build(MMPO, options | changed).fit(ckpt_path="last")
    said = capsys.readouterr().out
    assert "config       parts/config-1.yaml  (of the part since the run was resumed; it began with parts/conf" in said
    first, second = (json.loads(Path("parts", f"manifest{k}.json").read_text()) for k in ("", "-1"))
    assert (first["config"], second["config"]) == ("config.yaml", "config-1.yaml")
    assert not first["resumed"] and "weight_decay" in second["resumed"][0]


def test_a_configuration_is_a_file_several_or_a_dictionary_and_overrides_are_words_or_a_dictionary(
    options: dict[str, Any],
):
    Path("mine.yaml").write_text("data: {train: pairs.jsonl}\nmodel: {policy: {path: somewhere}}\n")
    several = build([MMPO, "mine.yaml"], ["--model.objective.beta 0.3", "data.seed=4"])
    assert several.run_dir == Path("runs/mine") and several.config["data"]["seed"] == 4
    assert "beta=0.3" in repr(several.module.objective)
    given = {"model": {"objective": "DPO", "policy": {"path": "somewhere"}}, "data": {"train": "pairs.jsonl"}}
    plain = build(given, {"run_dir": "here", "model.objective": {"class_path": "MMPO", "init_args": {"beta": 0.2}}})
    assert plain.run_dir == Path("here") and "beta=0.2" in repr(plain.module.objective)
    with pytest.raises(UsageError, match="give the run a folder"):
        build(given)


def test_naming_another_class_drops_the_arguments_of_the_old_one(options: dict[str, Any]):
    words = [f"{name}={value}" for name, value in options.items()]
    run = build(MMPO, [*words, "--model.objective.beta 0.7", "--model.objective DPO"])
    assert repr(run.module.objective) == repr(build(str(ROOT / "configs" / "dpo.yaml"), options).module.objective)


def test_mistakes_are_answered_as_on_the_command_line(options: dict[str, Any]):
    with pytest.raises(UsageError, match=r"unknown option --data.trian; did you mean --data.train"):
        build(MMPO, {"data.trian": "x"})
    with pytest.raises(UsageError, match="unknown class 'MPO'"):
        build(MMPO, {"model.objective": "MPO"})
    with pytest.raises(UsageError, match="closing_words is called print_summary now"):
        build(MMPO, {"closing_words": False})
    with pytest.raises(UsageError, match="closing_words is called print_summary now: write print_summary"):
        build({"closing_words": False, "model": {"objective": "DPO"}})


def test_processes_are_not_started_from_within_python(options: dict[str, Any]):
    run = build(MMPO, options | {"trainer.devices": 2, "trainer.strategy": "ddp", "run_dir": "run"})
    with pytest.raises(UsageError, match="2 processes cannot be started from within Python"):
        run.fit()
    assert not Path("run").exists()


def test_a_run_of_another_command_has_nothing_to_train_with(options: dict[str, Any]):
    run = build(MMPO, options, "validate")
    assert run.trainer.loggers == []
    with pytest.raises(UsageError, match="built for validate"):
        run.fit()


def test_check_leaves_the_run_as_it_is(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    run = build(MMPO, options | {"run_dir": "run"})
    run.check(json="report.json")
    assert Path("report.json").exists() and "train" in capsys.readouterr().out
    assert run.config["data"]["bad_rows"] == "strict" and not Path("run").exists()
    write_pairs(Path("pairs.jsonl"), 3)
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text() + "{}\n")
    with pytest.raises(UserError, match="stop this run"):
        run.check()


def test_work_in_place_of_training_sees_the_data_and_no_model(options: dict[str, Any]):
    seen: list[Any] = []

    def work(module: Any) -> None:
        seen.append((len(module.trainer.datamodule.train_pairs), module.scorer))

    run: Run = build(MMPO, options, "score")
    run.before_training(work)
    ((pairs, scorer),) = seen
    assert pairs > 0 and scorer is None and not Path("runs").exists()


def test_an_override_without_a_value_is_refused():
    with pytest.raises(UsageError, match=r"the override 'data.seed' needs a value, such as data.seed=1"):
        build(MMPO, ["data.seed"])


def test_the_first_parts_of_options_that_commands_check_are_those_of_the_parser():
    known = {"help", "print_config"}
    for command in ("fit", "validate"):
        known |= {action.dest.partition(".")[0] for action in run_parser(command)._actions if action.option_strings}
    assert set(TOP_LEVEL) == {name for name in known if not name.startswith("print_shtab")}


def test_a_validation_says_the_step_of_the_weights_that_it_read(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    run = build(MMPO, options | {"run_dir": "run", "stop_at_step": 2, "data.val_fraction": 0.3})
    run.fit()
    for evaluated, step in (
        (run, 2),
        (build(MMPO, options | {"run_dir": "run", "data.val_fraction": 0.3}, "validate"), 2),
    ):
        capsys.readouterr()
        evaluated.validate("last" if evaluated is not run else None)
        assert f"held out, at step {step}: loss" in capsys.readouterr().out
        assert Path("run", "records", f"validate-step={step:08d}.parquet").exists()
    build(MMPO, options | {"run_dir": "new", "data.val_fraction": 0.3}, "validate").validate()
    assert "held out, before training: loss" in capsys.readouterr().out


def test_the_seed_moves_all_that_is_random_but_the_split_unless_a_seed_is_set_apart(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    options = options | {"data.val_fraction": 0.3}

    def trained(folder: str, **more: Any) -> tuple[Run, dict[str, torch.Tensor]]:
        run = build(MMPO, options | {"run_dir": folder, "stop_at_step": 1} | more)
        run.fit()
        return run, weights(folder)

    zero, one = trained("0"), trained("1", seed_everything=1)
    assert (
        "seed        seed_everything 1 decides the order of pairs; set apart: the split by" in capsys.readouterr().out
    )
    apart = trained("apart", seed_everything=1, **{"data.seed": 0})
    assert "decides nothing here; set apart: the order of pairs by data.seed 0" in capsys.readouterr().out
    assert same(zero[1], apart[1]) and not same(zero[1], one[1])
    assert zero[0].data.val_pairs.fingerprint == one[0].data.val_pairs.fingerprint
    # The record follows another seed as well.
    again = build("1/config.yaml", {"run_dir": "again", "seed_everything": 2})
    assert again.data.seed == 2 and again.module.policy.seed == 2
    lora = build(MMPO, options | {"seed_everything": 3, "model.policy.lora": {"r": 2}, "run_dir": "lora"})
    assert lora.module.policy.seed == 3
    chance = {"class_path": "Random", "init_args": {"keep": 0.5}}
    assert build(MMPO, options | {"seed_everything": 4, "data.selection": chance}).data.selection.seed == 4


def test_a_run_without_a_seed_is_refused(options: dict[str, Any]):
    with pytest.raises(UserError, match=r"seed_everything is false.*give a number"):
        build(MMPO, {**options, "seed_everything": False})


def test_a_resumed_run_with_nothing_left_to_train_says_so(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    build(MMPO, options).fit()
    assert "nothing was left" not in capsys.readouterr().out
    build(MMPO, {**options, "ckpt_path": "last"}).fit()
    assert "nothing was left to train: the run ends at the step of its checkpoint" in capsys.readouterr().out
    beta = {"model.objective.beta": 0.3, "ckpt_path": "last", "trainer.max_steps": 3}
    resumed = build(MMPO, {**options, **beta})
    resumed.fit()
    said = capsys.readouterr().out
    assert "checkpoint  runs/mmpo/checkpoints/step=00000003.ckpt, from which this run resumes" in said
    assert "not used, because nothing was left to train: model.objective MMPO(beta=0.3" in said
    assert "resumed     from" not in said and resumed.module.resumption.changes == []
    assert "beta=0.3" not in Path("runs/mmpo/hf/README.md").read_text()


def test_what_a_resumed_run_refuses_is_refused_before_references_are_scored(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    build(MMPO, options | {"stop_at_step": 1}).fit()
    real = PreferenceModule.reference_preparations
    monkeypatch.setattr(PreferenceModule, "reference_preparations", lambda *_: pytest.fail("references are scored"))
    rows = Path("pairs.jsonl").read_text()
    for changed, sentence in {
        "trainer.precision=bf16-mixed": "trainer.precision 32-true and this run has bf16-mixed",
        "model.optimizer.betas=[0.8, 0.9]": r"model.optimizer.betas \[0.9, 0.999\] and this run has \[0.8, 0.9\]",
        "seed_everything=3": "seed_everything 0 and this run has 3",
        "data.global_batch=4": "data.global_batch 8, this run has 4.*set data.global_batch to the value",
        "data.max_length=45": r"training data.*\(data.max_length is 45 and was \d+\)",
        "data.val_fraction=0.5": r"number of training pairs of \d+.*\(data.val_fraction is 0.5 and was 0.1\)",
        "model.policy.dtype=bfloat16": "model.policy.dtype float32 and this run has bfloat16",
    }.items():
        with pytest.raises(UserError, match=sentence):
            name, _, value = changed.partition("=")
            build(MMPO, options | {"ckpt_path": "last", name: value}).fit()
    # The same rows under another name are the same data; other rows under the same name are not.
    Path("pairs.jsonl").write_text(rows.replace("good", "better"))
    with pytest.raises(UserError, match=r"no setting of data changed, so the rows did"):
        build(MMPO, options | {"ckpt_path": "last"}).fit()
    monkeypatch.setattr(PreferenceModule, "reference_preparations", real)
    Path("moved.jsonl").write_text(rows)
    live = {"model.reference_store": False}  # such references are not known before the model is built
    resumed = build(MMPO, options | live | {"ckpt_path": "last", "data.train": "moved.jsonl"})
    resumed.fit()
    assert resumed.trainer.global_step == 3


def test_a_tokenizer_that_changed_in_the_run_folder_is_not_exported(options: dict[str, Any]):
    run = build(MMPO, options | {"run_dir": "run"})
    run.fit()
    file = Path("run/tokenizer/tokenizer.json")
    whole = file.read_bytes()
    run.export("good")
    for content, says in ((whole.replace(b"a", b"b", 1), "not as the run wrote it"), (None, "missing")):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match=f"tokenizer.json is {says}, .*restore the file, or move the folder away"):
            run.export("bad")
        assert not Path("bad").exists()
    manifest = Path("run/manifest.json")
    manifest.unlink()
    with pytest.raises(UserError, match="the tokenizer in its run folder cannot be used: "):
        run.export("bad")


def test_a_folder_that_the_export_would_not_replace_stops_a_run_before_training(options: dict[str, Any]):
    build(MMPO, options | {"run_dir": "run", "stop_at_step": 1}).fit()
    Path("run/hf/lit_pref.json").write_text("{")
    with pytest.raises(
        UsageError, match=r"lit_pref.json was not .* or is damaged: move run/hf away, or export to another"
    ):
        build(MMPO, options | {"run_dir": "run"}).fit("last")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step=00000001.ckpt"]


def test_the_configuration_of_a_run_folder_reads_the_same_files_from_another_directory(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.yaml").write_text("base: pairs")
    here = options | {"run_dir": "run", "data.mapping": "mine.yaml", "model.policy.tokenizer": "tok"}
    shutil.copytree(options["model.policy.path"], tmp_path / "tok")
    run = build(MMPO, here)
    assert run.data.train == "pairs.jsonl"  # as it was typed, in messages
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "config.yaml").write_text(run.config_text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_pairs(Path("pairs.jsonl"), 5)  # another file of that name
    again = build(tmp_path / "config.yaml", {"run_dir": "run"})
    assert again.data.train == str(tmp_path / "pairs.jsonl") and again.module.spec.tokenizer == str(tmp_path / "tok")
    assert again.config["data"]["mapping"] == str(tmp_path / "mine.yaml")
    named = build(MMPO, options | {"run_dir": "run", "data.train": "~/pairs.jsonl", "data.mapping": "pairs"})
    assert named.config["data"]["mapping"] == "pairs"


def test_the_home_folder_is_known_in_every_option_and_in_files(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("home.yaml").write_text("run_dir: ~/runs/mine\ndata: {train: ~/pairs.jsonl}\n")
    run = build([MMPO, "~/home.yaml"], {k: v for k, v in options.items() if k != "data.train"})
    assert run.run_dir == tmp_path / "runs" / "mine" and run.config["data"]["train"] == str(tmp_path / "pairs.jsonl")
    Path("texts.jsonl").write_text('{"prompt": "a", "response": "b", "own": 1}\n')
    with pytest.raises(SystemExit):
        main(["judge", "--texts=~/texts.jsonl", "--out=~/judged", "--given=own"])
    assert (tmp_path / "judged" / "judged.jsonl").exists() and not (tmp_path / "~").exists()


def test_a_reward_model_as_policy_or_reference_is_refused_before_the_first_lines(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    policy = Path(options["model.policy.path"])
    reward = shutil.copytree(policy, tmp_path / "reward")
    config = json.loads((policy / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (reward / "config.json").write_text(json.dumps(config))
    reference = [{"class_path": "Pretrained", "init_args": {"path": str(reward)}}]
    for changed in ({"model.policy.path": str(reward)}, {"model.references": reference}):
        with pytest.raises(UserError, match="reward' is a LlamaForSequenceClassification, not a causal language model"):
            build(MMPO, {**options, **changed, "run_dir": "run"}).fit()
    assert capsys.readouterr().out == "" and not Path("run").exists()


def test_a_reference_whose_head_rounds_otherwise_than_the_policys_is_warned_of(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    init = {"path": options["model.policy.path"], "head_precision": "bf16"}
    rounded = {"model.references": [{"class_path": "Pretrained", "init_args": init}], "run_dir": "run"}
    build(MMPO, {**options, **rounded, "trainer.max_steps": 1, "print_summary": True}).fit()
    said = capsys.readouterr().out
    assert "warning     head_precision is bf16 for reference 0 and auto for the policy" in said
    assert re.search(r"reference 0 .*float32, head_precision bf16; stored", said)
