"""`export`: what is written opens in transformers and scores as the trained policy did."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_pairs
from peft import PeftModel
from training_runs import Ran, Run, fit, logps
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_pref.__main__ import main
from lit_pref.commands.export import export
from lit_pref.errors import UsageError, UserError
from lit_pref.metrics.records import read_parquet
from lit_pref.models.policy import Lora
from lit_pref.objectives.sft import SFT

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


def test_the_largest_difference_is_one_where_the_folder_is_not_the_checkpoint(
    plain: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lit_pref.commands import export as module

    monkeypatch.setattr(module, "reopen", lambda folder, policy: policy.build())  # the policy before training
    assert export(plain.checkpoint(2), tmp_path / "hf").largest_difference > 1e-2


def test_the_model_card_says_how_the_model_was_made(plain: Ran, tmp_path: Path):
    export(plain.checkpoint(2), tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "step=00000002.ckpt" in card and repr(plain.module.objective) in card
    assert f"policy before training: {plain.module.policy.describe()}" in card
    assert plain.module.references[0].describe() in card


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
    with pytest.raises(UserError, match="was not written to its end; take an earlier one"):
        export(half, tmp_path / "hf")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other.ckpt is not a checkpoint of lit_pref"):
        export(tmp_path / "other.ckpt", tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and not an exported model"):
        export(plain.checkpoint(2), tmp_path / "full")


def test_weights_that_do_not_fit_the_configuration_are_refused(plain: Ran, tmp_path: Path):
    checkpoint = torch.load(plain.checkpoint(2), weights_only=True)
    del checkpoint["state_dict"]["scorer.model.lm_head.weight"]
    torch.save(checkpoint, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match=r"do not fit the policy in its configuration: .*lm_head.weight"):
        export(tmp_path / "less.ckpt", tmp_path / "hf")
