"""`export`: what is written opens in transformers and scores as the trained policy did."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_policy, write_pairs
from peft import PeftModel
from training_runs import Ran, Run, fit, logps
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_pref.__main__ import main
from lit_pref.errors import UsageError, UserError
from lit_pref.metrics.records import read_parquet
from lit_pref.models import generation, saving
from lit_pref.models.spec import Lora
from lit_pref.objectives.sft import SFT
from lit_pref.run import export as module
from lit_pref.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


@pytest.fixture(scope="module")
def plain(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(run_of(policy_folder, tmp_path_factory), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def lora(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    run = run_of(policy_folder, tmp_path_factory)
    return fit(replace(run, policy={**run.policy, "lora": Lora(r=2)}), tmp_path_factory.mktemp("lora"))


def run_of(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    data = {
        "train": str(write_pairs(folder / "train.jsonl", 12)),
        "val": str(write_pairs(folder / "val.jsonl", 4, seed=1)),
    }
    return Run(policy={"path": str(policy_folder)}, data={**data, "global_batch": 8}, optimizer=adamw)


def assert_scores_as(ran: Ran, model: object, before: Path) -> None:
    pairs = ran.trainer.datamodule.val_pairs
    records = read_parquet(ran.folder / "records" / "val-step=00000002.parquet")
    untrained = logps(AutoModelForCausalLM.from_pretrained(before), pairs)
    for column, values in logps(model, pairs).items():
        assert records[column] == (values if column == "id" else pytest.approx(values, abs=1e-3))
        assert column == "id" or records[column] != pytest.approx(untrained[column], abs=1e-2)


def test_a_plain_checkpoint_becomes_a_folder_with_the_trained_weights(plain: Ran, tmp_path: Path, policy_folder: Path):
    exported = export(plain.checkpoint(2), tmp_path / "hf")
    assert exported.largest_difference == 0 and exported.pairs == 8
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    trained = plain.module.scorer.model.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in model.state_dict().items())
    assert_scores_as(plain, model, policy_folder)
    tokenizer, own = AutoTokenizer.from_pretrained(tmp_path / "hf"), AutoTokenizer.from_pretrained(policy_folder)
    assert tokenizer("red green 3 :").input_ids == own("red green 3 :").input_ids


def test_a_lora_checkpoint_is_merged_into_plain_weights(lora: Ran, tmp_path: Path, policy_folder: Path):
    assert export(lora.checkpoint(2), tmp_path / "hf").largest_difference < 1e-4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert not any("lora" in name for name in model.state_dict())
    assert_scores_as(lora, model, policy_folder)


def test_a_lora_checkpoint_is_written_as_the_adapter_alone(lora: Ran, tmp_path: Path, policy_folder: Path):
    assert export(lora.checkpoint(2), tmp_path / "adapter", merge=False).largest_difference == 0
    assert not (tmp_path / "adapter" / "config.json").exists()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    assert_scores_as(lora, PeftModel.from_pretrained(base, tmp_path / "adapter"), policy_folder)


@pytest.mark.parametrize("form", ["plain", "merged", "adapter"])
def test_a_folder_with_one_other_bit_than_the_checkpoint_is_refused_and_gone(
    form: str, plain: Ran, lora: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def tampered(folder, policy):
        model = saving.reopen(folder, policy)
        name = "v_proj.lora_B.default.weight" if form == "adapter" else "v_proj.weight"
        tensor = [tensor for full_name, tensor in model.named_parameters() if full_name.endswith(name)][-1]
        tensor.data[0, 0] = torch.nextafter(tensor.data[0, 0], torch.tensor(9.0))
        return model

    monkeypatch.setattr(module, "reopen", tampered)
    ran = plain if form == "plain" else lora
    with pytest.raises(UserError, match=r"weight in the exported folder is not that of the checkpoint"):
        export(ran.checkpoint(2), tmp_path / "hf", merge=form == "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["plain", "merged", "adapter"])
def test_a_folder_that_scores_otherwise_is_refused_and_gone(
    form: str, plain: Ran, lora: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other_activation(folder, policy):
        model = saving.reopen(folder, policy)
        for name, part in model.named_modules():
            if name.endswith("mlp"):
                part.act_fn = torch.nn.Identity()
        return model

    monkeypatch.setattr(module, "reopen", other_activation)
    ran = plain if form == "plain" else lora
    cause = "write it alone" if form == "merged" else "computes something else than the trained one"
    with pytest.raises(UserError, match=rf"a token where 1\.0e-03 is accepted, so .*hf was not written; .*{cause}"):
        export(ran.checkpoint(2), tmp_path / "hf", merge=form == "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_bf16_merge_may_change_scores_by_a_few_units_in_the_last_place(
    policy_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    run = run_of(policy_folder, tmp_path_factory)
    policy = {**run.policy, "dtype": "bfloat16", "lora": Lora(r=2)}
    ran = fit(replace(run, policy=policy), tmp_path / "run")
    exported = export(ran.checkpoint(2), tmp_path / "hf")
    assert 0 < exported.per_token <= exported.accepted < 0.04
    assert export(ran.checkpoint(2), tmp_path / "alone", merge=False).accepted == 0.05

    def merged_badly(model: Any, *arguments: Any) -> Any:
        for name, tensor in model.named_parameters():
            if "lora_B" in name and ".0." in name:
                tensor.data.mul_(4)  # in one layer
        return saving.save_folder(model, *arguments)

    monkeypatch.setattr(module, "save_folder", merged_badly)
    with pytest.raises(UserError, match=r"rounds its change of the weights to bfloat16"):
        export(ran.checkpoint(2), tmp_path / "bad")


def test_the_rounding_of_a_bf16_merge_is_judged():
    coarse = module.Exported(Path("hf"), 0.16, 0.02, 8, "bfloat16", [], 0.05)
    assert coarse.judgement.endswith(
        "1.6e-01 nats, 2.0e-02 a token: rounding in bfloat16, of which 5.0e-02 is accepted"
    )
    module.refuse_other_scores(coarse, merged=True)
    with pytest.raises(UserError, match=r"rounds its change of the weights to bfloat16: write the adapter alone"):
        module.refuse_other_scores(replace(coarse, per_token=0.06), merged=True)
    assert replace(coarse, largest_difference=0.0, per_token=0.0).judgement.endswith("by at most 0.0e+00 nats")


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "q_proj"], ["q_proj"]])
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_adapter_on_tied_embeddings_is_the_trained_model(
    targets: list[str], tied: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    policy = make_policy(tmp_path / "policy", seed=3, tie_word_embeddings=tied)
    run = run_of(policy, tmp_path_factory)
    run = replace(run, policy={**run.policy, "lora": Lora(r=2, target_modules=targets)}, layout="padded")
    ran = fit(run, tmp_path / "run")
    assert export(ran.checkpoint(2), tmp_path / "hf").largest_difference < 1e-3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert_scores_as(ran, model, policy)
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == model.config.tie_word_embeddings == (tied and targets == ["q_proj"])


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_an_exported_chat_model_stops_where_its_responses_ended(
    lora: Lora | None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    policy = make_policy(tmp_path / "policy", seed=3, vocabulary=300)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|other|>"]})
    tokenizer.chat_template = CHAT
    model = AutoModelForCausalLM.from_pretrained(policy)
    model.resize_token_embeddings(len(tokenizer))
    end, other = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|other|>"))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    rows = [{"prompt": f"say {k}", "chosen": f"red {k}", "rejected": f"blue {k}"} for k in range(12)]
    train = tmp_path / "chat.jsonl"
    chats = ({key: [{"role": role, "content": row[key]}] for key, role in ROLES.items()} for row in rows)
    train.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    run = Run(
        policy={"path": str(policy), "lora": lora},
        data={"train": str(train), "val": None, "val_fraction": 0.2, "global_batch": 8},
        optimizer=adamw,
    )
    ran = fit(run, tmp_path / "run")
    assert generation.stops(ran.module.scorer.model) == [tokenizer.eos_token_id, other, end]
    assert generation.end_ids(ran.module.scorer.model, tokenizer) == [tokenizer.eos_token_id, other, end]
    exported = export(ran.checkpoint(2), tmp_path / "hf")
    saved = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [tokenizer.eos_token_id, other, end]
    assert exported.stops == ["<eos>", "<|other|>", "<|im_end|>"]


def test_a_turn_that_ends_in_plain_text_is_followed_by_eos_at_which_the_folder_stops(tmp_path: Path):
    policy = make_policy(tmp_path / "policy", seed=3, vocabulary=300)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = CHAT.replace("<|im_end|>", "***")
    tokenizer.save_pretrained(policy)
    chats = [{k: [{"role": r, "content": f"{k} {n}"}] for k, r in ROLES.items()} for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    data = {"train": str(tmp_path / "chat.jsonl"), "val": None, "val_fraction": 0.2, "global_batch": 8}
    ran = fit(Run(policy={"path": str(policy)}, data=data), tmp_path / "run")
    assert {pair.chosen[-1] for pair in ran.trainer.datamodule.train_pairs} == {tokenizer.eos_token_id}
    assert export(ran.checkpoint(ran.trainer.global_step), tmp_path / "hf").stops == ["<eos>"]


ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def test_the_model_card_says_how_the_model_was_made(plain: Ran, tmp_path: Path):
    export(plain.checkpoint(2), tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "step=00000002.ckpt" in card and repr(plain.module.objective) in card
    assert f"policy before training: {plain.module.policy.describe()}" in card
    assert plain.module.references[0].describe() in card
    assert "by `DPO`" in card and "configuration that made it" not in card, "this run has no configuration"
    config = {"model": {"objective": {"class_path": "DPO"}}}
    checkpoint = changed(
        plain.checkpoint(2), tmp_path / "configured.ckpt", lambda c: c["lit_pref"].update(config=config)
    )
    export(checkpoint, tmp_path / "configured")
    card = (tmp_path / "configured" / "README.md").read_text()
    assert "The configuration that made it:\n\n```yaml\nmodel:\n  objective:\n    class_path: DPO\n```" in card


def test_the_command_says_where_the_folder_is_and_how_far_its_scores_are(
    plain: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["export", "--ckpt_path", str(plain.checkpoint(2)), "--out", str(tmp_path / "hf"), "--pairs", "3"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'hf'}" in said
    assert "the scores of 3 pairs differ by at most 0" in said


def test_one_sided_checkpoints_are_compared_on_their_one_side(policy_folder: Path, tmp_path: Path, tmp_path_factory):
    ran = fit(replace(run_of(policy_folder, tmp_path_factory), objective=SFT), tmp_path)
    assert export(ran.checkpoint(2), tmp_path / "hf").largest_difference == 0


def test_what_is_no_whole_checkpoint_of_ours_is_refused_in_a_sentence(plain: Ran, tmp_path: Path):
    with pytest.raises(UserError, match=r"none.ckpt does not exist"):
        export(tmp_path / "none.ckpt", tmp_path / "hf")
    half = tmp_path / "half.ckpt"
    half.write_bytes(plain.checkpoint(2).read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a checkpoint, or was not written to its end; give another one"):
        export(half, tmp_path / "hf")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other.ckpt is not a checkpoint of lit_pref"):
        export(tmp_path / "other.ckpt", tmp_path / "hf")
    changed(plain.checkpoint(2), tmp_path / "older.ckpt", lambda c: c["lit_pref"].update(format=0))
    with pytest.raises(UserError, match=r"older.ckpt was written by another version of lit_pref"):
        export(tmp_path / "older.ckpt", tmp_path / "hf")


# The folder that is written


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_an_earlier_export_is_replaced(plain: Ran, tmp_path: Path, policy_folder: Path):
    model = tmp_path / "model"
    shutil.copytree(policy_folder, model)
    (tmp_path / "file").write_text("mine")
    for out, reason in ((model, "is not empty and was not written by an export"), (tmp_path / "file", "is a file")):
        with pytest.raises(UsageError, match=reason):
            export(plain.checkpoint(2), out)
    (model / "lit_pref.json").write_text("{}")
    with pytest.raises(UsageError, match=r"lit_pref.json was not written by an export"):
        export(plain.checkpoint(2), model)
    (model / "lit_pref.json").unlink()
    assert content(model) == content(policy_folder)
    hf = export(plain.checkpoint(2), tmp_path / "hf").folder
    (hf / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"with files added to it, which would be lost: thesis.txt"):
        export(plain.checkpoint(2), hf)
    assert (hf / "thesis.txt").exists()


def test_an_earlier_export_is_replaced_whole(lora: Ran, tmp_path: Path):
    merged = export(lora.checkpoint(2), tmp_path / "hf").folder
    assert (merged / "model.safetensors").exists()
    export(lora.checkpoint(2), tmp_path / "hf", merge=False)
    assert (merged / "adapter_model.safetensors").exists()
    assert not (merged / "model.safetensors").exists() and not (merged / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_the_marker_says_where_the_folder_came_from(plain: Ran, tmp_path: Path):
    export(plain.checkpoint(2), tmp_path / "hf")
    marker = json.loads((tmp_path / "hf" / "lit_pref.json").read_text())
    assert marker.pop("files") == sorted({path.name for path in (tmp_path / "hf").iterdir()} - {"lit_pref.json"})
    assert marker == {
        "checkpoint": str(plain.checkpoint(2)),
        "step": 2,
        "objective": repr(plain.module.objective),
        "policy_before_training": plain.module.policy.fingerprint(),
    }


def test_an_export_that_is_cut_off_leaves_the_earlier_one_and_nothing_else(
    plain: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hf = export(plain.checkpoint(2), tmp_path / "hf").folder
    before = content(hf)

    def cut_off(model, tokenizer, folder, card, merge):
        (folder / "config.json").write_text("half of i")
        assert content(hf) == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "save_folder", cut_off)
        export(plain.checkpoint(2), hf)
    assert content(hf) == before and [path.name for path in tmp_path.iterdir()] == ["hf"]
    # What a kill leaves, beside the folder or in the moment between the two renames, is no obstacle.
    (tmp_path / ".hf.unfinished").mkdir()
    (tmp_path / ".hf.unfinished" / "junk").write_text("half")
    hf.rename(tmp_path / ".hf.old")
    with saving.replacing(hf, {}) as unfinished:
        assert content(hf) == before and content(unfinished) == {}
    assert content(hf).keys() == {"lit_pref.json"} and [path.name for path in tmp_path.iterdir()] == ["hf"]


# The model that the run began with


def changed(checkpoint: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, to)
    return to


def moved_policy(path: Path) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["lit_pref"]["model"].update(path=str(path))


@pytest.mark.parametrize("merge", [True, False])
def test_adapters_over_a_changed_base_are_refused(lora: Ran, tmp_path: Path, merge: bool):
    other = make_policy(tmp_path / "other", seed=5)
    checkpoint = changed(lora.checkpoint(2), tmp_path / "lora.ckpt", moved_policy(other))
    with pytest.raises(UserError, match=r"is not the one that the run started from: .* restore them"):
        export(checkpoint, tmp_path / "hf", merge=merge)
    assert not (tmp_path / "hf").exists()


def test_an_export_over_the_model_that_the_run_began_with_is_refused(plain: Ran, lora: Ran, tmp_path: Path):
    base = export(plain.checkpoint(2), tmp_path / "base").folder
    checkpoint = changed(lora.checkpoint(2), tmp_path / "lora.ckpt", moved_policy(base))
    with pytest.raises(UsageError, match="is the model that the run started from"):
        export(checkpoint, base, merge=False)


def test_a_changed_policy_without_a_path_is_refused(policy_folder: Path, tmp_path: Path, tmp_path_factory):
    small = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    drawn = {"config": {**small, "num_attention_heads": 2}, "tokenizer": str(policy_folder)}
    ran = fit(replace(run_of(policy_folder, tmp_path_factory), policy=drawn), tmp_path / "run")
    assert export(ran.checkpoint(2), tmp_path / "hf").largest_difference == 0
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}  # fits all tensors, computes another thing
    checkpoint = changed(
        ran.checkpoint(2),
        tmp_path / "other.ckpt",
        lambda c: c["lit_pref"]["model"]["config"].update(theta),
    )
    with pytest.raises(UserError, match="is not the one that the run started from"):
        export(checkpoint, tmp_path / "other")


@pytest.mark.parametrize("state", ["gone", "changed"])
def test_whole_weights_do_not_need_the_folder_that_they_began_in(
    plain: Ran, tmp_path: Path, policy_folder: Path, state: str
):
    if state == "changed":
        shutil.copytree(policy_folder, tmp_path / "policy")
        config = json.loads((policy_folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 7.0
        (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    checkpoint = changed(
        plain.checkpoint(2), tmp_path / "checkpoints" / "step=00000002.ckpt", moved_policy(tmp_path / "policy")
    )
    if state == "gone":
        with pytest.raises(UserError, match=r"the tokenizer of its run is not in .*tokenizer, and cannot be loaded"):
            export(checkpoint, tmp_path / "hf")
    plain.module.policy.load_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert export(checkpoint, tmp_path / "hf").largest_difference == 0
    assert_scores_as(plain, AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), policy_folder)
    changed(checkpoint, checkpoint, lambda c: c["lit_pref"]["architecture"].update(model_type="homemade"))
    with pytest.raises(UserError, match="its architecture cannot be built without it"):
        export(checkpoint, tmp_path / "hf")


# What training broke


def test_weights_that_are_not_finite_are_refused_by_name(plain: Ran, lora: Ran, tmp_path: Path):
    norm = "scorer.model.model.norm.weight"
    nan = changed(plain.checkpoint(2), tmp_path / "nan.ckpt", lambda c: c["state_dict"][norm].fill_(float("nan")))
    with pytest.raises(UserError, match=r"nan.ckpt: model.norm.weight contains numbers that are not finite"):
        export(nan, tmp_path / "hf")
    adapters = changed(
        lora.checkpoint(2),
        tmp_path / "inf.ckpt",
        lambda c: [t.fill_(float("inf")) for name, t in c["state_dict"].items() if "lora_A" in name],
    )
    with pytest.raises(UserError, match=r"inf.ckpt: .*lora_A.default.weight contains numbers that are not finite"):
        export(adapters, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_scores_that_are_not_finite_are_refused(plain: Ran, tmp_path: Path):
    large = changed(
        plain.checkpoint(2),
        tmp_path / "large.ckpt",
        lambda c: c["state_dict"]["scorer.model.lm_head.weight"].mul_(1e38),
    )
    with pytest.raises(UserError, match=r"large.ckpt: the score of a training pair is not finite"):
        export(large, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_run_whose_last_step_broke_the_weights_ends_with_a_sentence_and_no_folder(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    settings = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--trainer.logger", "false"]
    settings += ["--trainer.num_sanity_val_steps", "0", "--trainer.gradient_clip_val", "0"]
    settings += ["--data.train", str(pairs), "--data.val_fraction", "0", "--run_dir", "run"]
    settings += ["--model.policy.path", str(policy_folder), "--model.schedule", "null"]
    settings += ["--model.optimizer", "SGD", "--model.optimizer.lr", "3e38", "--model.optimizer.weight_decay", "1e6"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(ROOT / "configs" / "dpo.yaml"), *settings])
    assert ended.value.code == 1
    errors = capfd.readouterr().err
    assert (
        "lit_pref: run/checkpoints/step=00000001.ckpt: " in errors and "contains numbers that are not finite" in errors
    )
    assert not (tmp_path / "run" / "hf").exists()


def test_weights_that_do_not_fit_the_configuration_are_refused(plain: Ran, tmp_path: Path):
    checkpoint = torch.load(plain.checkpoint(2), weights_only=True)
    del checkpoint["state_dict"]["scorer.model.lm_head.weight"]
    torch.save(checkpoint, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match=r"do not fit the policy in its configuration: .*lm_head.weight"):
        export(tmp_path / "less.ckpt", tmp_path / "hf")


def test_code_beside_a_checkpoint_runs_on_the_word_of_the_caller_alone(plain: Ran, tmp_path: Path, policy_folder: Path):
    ran = tmp_path / "ran"
    run = tmp_path / "run"
    shutil.copytree(policy_folder, run / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (run / "tokenizer" / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\nclass Evil(PreTrainedTokenizerFast):\n    pass\n"
    )
    file = run / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    file.write_text(json.dumps(settings | {"tokenizer_class": "Evil"}))
    (run / "checkpoints").mkdir()

    def trusting(content: dict[str, Any]) -> None:
        content["lit_pref"]["model"]["trust_remote_code"] = True

    path = changed(plain.checkpoint(2), run / "checkpoints" / "x.ckpt", trusting)
    with pytest.raises(UserError, match=r"x.ckpt: its model comes with code .*add --trust_remote_code"):
        export(path, tmp_path / "out")
    untold = changed(plain.checkpoint(2), run / "checkpoints" / "y.ckpt", lambda content: None)
    with suppress(UserError):
        export(untold, tmp_path / "out")
    assert not ran.exists()
    with suppress(UserError, ValueError):
        export(path, tmp_path / "out", trust_remote_code=True)
    assert ran.exists()
