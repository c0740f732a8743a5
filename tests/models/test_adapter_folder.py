"""Adapter folders as policy and reference: continued or merged, resumed, exported; and modules trained whole."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_policy, write_pairs
from peft import LoraConfig, PeftModel, get_peft_model
from training_runs import Run, differences, fit, trained
from transformers import AutoModelForCausalLM

from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import AdapterOff
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def write_adapter(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter that changes what its base computes, as peft writes it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    wrapped = get_peft_model(model, config)
    torch.manual_seed(seed)
    for _, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(policy_folder, tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture(scope="module")
def run(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    data = {"train": str(write_pairs(folder / "train.jsonl", 8)), "val": str(write_pairs(folder / "val.jsonl", 3, 1))}
    return Run({"path": str(adapter)}, {**data, "global_batch": 4})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# The spec


def test_an_adapter_folder_is_its_base_with_the_adapter_trainable(adapter: Path, policy_folder: Path):
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), adapter)
    spec = ModelSpec(str(adapter))
    model = spec.build()
    assert torch.equal(logits(model), logits(expected))
    assert not torch.allclose(logits(model), logits(AutoModelForCausalLM.from_pretrained(policy_folder)), atol=0.1)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    merged = ModelSpec(str(adapter), merge_adapter=True).build()
    torch.testing.assert_close(logits(merged), logits(expected), rtol=0, atol=1e-4)
    assert all(p.requires_grad for p in merged.parameters()) and not isinstance(merged, PeftModel)
    again = ModelSpec(str(adapter), merge_adapter=True, lora=Lora(r=2)).build()
    torch.testing.assert_close(logits(again), logits(merged))
    assert spec.adapters == Lora(3, 12, 0.0, ["q_proj", "v_proj"]) and ModelSpec(str(policy_folder)).adapters is None
    assert spec.describe() == f"{adapter} (adapter of rank 3 on {policy_folder}), float32"
    bare = spec.without_adapters()
    assert torch.equal(logits(bare.build()), logits(AutoModelForCausalLM.from_pretrained(policy_folder)))
    assert bare.fingerprint() == ModelSpec(str(policy_folder)).fingerprint()


def test_the_fingerprint_is_that_of_base_and_adapter(adapter: Path, policy_folder: Path, tmp_path: Path):
    shutil.copytree(policy_folder, tmp_path / "moved")
    shutil.copytree(adapter, tmp_path / "adapter")
    moved = ModelSpec(str(tmp_path / "adapter"), base_model=str(tmp_path / "moved"))
    prints = [
        ModelSpec(str(adapter)).fingerprint(),
        ModelSpec(str(policy_folder)).fingerprint(),
        ModelSpec(str(adapter), merge_adapter=True).fingerprint(),
        ModelSpec(str(write_adapter(policy_folder, tmp_path / "other", seed=1))).fingerprint(),
        ModelSpec(str(adapter), base_model=str(make_policy(tmp_path / "another", seed=7))).fingerprint(),
    ]
    assert len(set(prints)) == 5 and moved.fingerprint() == prints[0]


def test_the_base_may_lie_beside_the_adapter(adapter: Path, policy_folder: Path, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(policy_folder, tmp_path / "base")
    write_settings(tmp_path / "adapter", base_model_name_or_path="../base")
    assert torch.equal(logits(ModelSpec(str(tmp_path / "adapter")).build()), logits(ModelSpec(str(adapter)).build()))


def write_settings(folder: Path, **changed: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"peft_type": "IA3"}, "is of the kind IA3: only LoRA adapters can be trained or merged"),
        ({"task_type": "SEQ_CLS"}, "has the adapter of a reward model, and policy.head is lm"),
        ({"task_type": "QUESTION_ANS"}, "is for the task QUESTION_ANS, not for a language model or a reward model"),
        ({"base_model_name_or_path": None}, "does not name the model that it is for: set base_model beside path"),
        ({"base_model_name_or_path": "/no/such"}, "there is no folder '/no/such'"),
        ({"r": 5}, "does not fit its base model .* set base_model to the model that it was trained on"),
        ({"target_modules": ["q_proj", "o_proj"]}, "does not fit its base model .it has no weights for .*o_proj"),
        ({"target_modules": ["q_proj"]}, "does not fit its base model .the model has no place for .*v_proj"),
        ({"modules_to_save": ["lm_head"]}, "does not fit its base model"),
    ],
)
def test_adapters_that_cannot_be_used_are_refused(changed: Any, words: str, adapter: Path, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "adapter")
    write_settings(tmp_path / "adapter", **changed)
    with pytest.raises(UserError, match=words):
        ModelSpec(str(tmp_path / "adapter")).build()


def test_damaged_folders_and_contradictory_settings_are_refused(adapter: Path, policy_folder: Path, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"is damaged or was not copied to its end .*: get it again"):
        ModelSpec(str(tmp_path / "adapter")).build()
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"but no adapter_model\.safetensors: pickled weights can run code"):
        ModelSpec(str(tmp_path / "adapter")).build()
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"the adapter_config\.json of '.*' cannot be read"):
        ModelSpec(str(tmp_path / "adapter")).build()
    with pytest.raises(UserError, match=r"leave policy\.lora out to continue that adapter, or set policy\.merge_adapt"):
        ModelSpec(str(adapter), lora=Lora()).build()
    with pytest.raises(UserError, match=r"are for a policy\.path with an adapter, and '.*' has none: leave them out"):
        ModelSpec(str(policy_folder), merge_adapter=True).build()
    with pytest.raises(UserError, match=r"contains a LoRA adapter, and a whole model is needed here"):
        ModelSpec(str(adapter), base_model=str(adapter)).build()


# Runs


@pytest.mark.parametrize("store", [True, False], ids=["stored", "live"])
def test_the_reference_is_the_adapter_as_it_was_given(store: bool, run: Run, policy_folder: Path, tmp_path: Path):
    ran = fit(replace(run, reference_store=store), tmp_path / "run")
    margins, losses = (ran.logged.column(f"train/{name}") for name in ("rewards/margins", "loss"))
    assert margins[0] == pytest.approx(0, abs=1e-5) and losses[0] == pytest.approx(0.6931472, abs=1e-6)
    assert abs(margins[1]) > 1e-4
    bare = fit(replace(run, references=lambda: [Pretrained(str(policy_folder))]), tmp_path / "bare")
    off = fit(replace(run, references=lambda: [AdapterOff()], reference_store=store), tmp_path / "off")
    assert abs(bare.logged.column("train/rewards/margins")[0]) > 1e-3
    assert off.logged.column("train/loss") == pytest.approx(bare.logged.column("train/loss"), abs=1e-5)
    given = fit(replace(run, references=lambda: [Pretrained(run.policy["path"])]), tmp_path / "given")
    assert given.logged.column("train/loss") == pytest.approx(losses, abs=1e-6)
    merged = fit(replace(run, policy={**run.policy, "merge_adapter": True}), tmp_path / "merged")
    assert merged.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    assert "lora" not in " ".join(merged.module.state_dict())


def test_a_run_on_an_adapter_resumes_exports_and_is_continued(run: Run, adapter: Path, tmp_path: Path):
    ran = fit(run, tmp_path / "run", every=1)
    checkpoint = read_checkpoint(ran.checkpoint(2))
    assert all("lora_" in name for name in checkpoint["state_dict"])
    resumed = fit(run, tmp_path / "resumed", ckpt=ran.checkpoint(1))
    again = read_checkpoint(resumed.checkpoint(2))
    assert not differences(trained(checkpoint), trained(again))

    whole = export(ran.checkpoint(2), tmp_path / "whole")
    alone = export(ran.checkpoint(2), tmp_path / "alone", merge=False)
    assert whole.per_token < 1e-4 and alone.per_token == 0
    final = ran.module.scorer.model
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(whole.folder)), logits(final), rtol=0, atol=1e-4
    )
    # The exported adapter names its base, has its tokenizer, and differs from the one that was given.
    assert torch.equal(logits(ModelSpec(str(alone.folder)).build()), logits(final))
    assert not torch.equal(logits(ModelSpec(str(adapter)).build()), logits(final))
    onward = fit(replace(run, policy={"path": str(alone.folder)}), tmp_path / "onward")
    assert onward.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)

    with pytest.raises(UserError, match="is not the model of the checkpoint"):
        other = write_adapter(Path(ModelSpec(str(adapter)).source[0]), tmp_path / "other", seed=3)
        fit(replace(run, policy={"path": str(other)}), tmp_path / "refused", ckpt=ran.checkpoint(1))
    with pytest.raises(UserError, match=r"the adapters of the checkpoint have the settings"):
        base = ModelSpec(str(adapter)).source[0]
        fit(replace(run, policy={"path": base}), tmp_path / "refused", ckpt=ran.checkpoint(1))


def test_new_adapters_on_a_merged_one_are_exported_merged_only(run: Run, adapter: Path, tmp_path: Path):
    policy = {"path": str(adapter), "merge_adapter": True, "lora": Lora(r=2)}
    ran = fit(replace(run, policy=policy), tmp_path / "run")
    assert ran.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    whole = export(ran.checkpoint(2), tmp_path / "whole")
    final = ran.module.scorer.model
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(whole.folder)), logits(final), rtol=0, atol=1e-4
    )
    with pytest.raises(UsageError, match=r"a model that is nowhere on the disk.*export with --merge true"):
        export(ran.checkpoint(2), tmp_path / "alone", merge=False)


# Modules that are trained whole


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_modules_to_save_are_trained_exported_and_continued(names: list[str], tied: bool, run: Run, tmp_path: Path):
    base = make_policy(tmp_path / "base", seed=0, tie_word_embeddings=tied)
    policy = {"path": str(base), "lora": Lora(r=2, target_modules=["q_proj"], modules_to_save=names)}
    ran = fit(replace(run, policy=policy), tmp_path / "run", every=1)
    assert ran.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    saved = read_checkpoint(ran.checkpoint(2))["state_dict"]
    parts = {name.split(".")[-4] for name in saved if "modules_to_save" in name}
    assert parts == set(names) and all("lora_" in name or "modules_to_save" in name for name in saved)
    start = dict(ModelSpec(**policy).build().named_parameters())
    for name in (name for name in saved if "modules_to_save" in name):
        assert not torch.equal(saved[name], start[name.removeprefix("scorer.model.")]), name
    resumed = fit(replace(run, policy=policy), tmp_path / "resumed", ckpt=ran.checkpoint(1))
    assert not differences(trained(read_checkpoint(ran.checkpoint(2))), trained(read_checkpoint(resumed.checkpoint(2))))

    final = ran.module.scorer.model
    whole = export(ran.checkpoint(2), tmp_path / "whole")
    alone = export(ran.checkpoint(2), tmp_path / "alone", merge=False)
    assert whole.per_token < 1e-4 and alone.per_token == 0
    opened = AutoModelForCausalLM.from_pretrained(whole.folder)
    torch.testing.assert_close(logits(opened), logits(final), rtol=0, atol=1e-4)
    assert torch.equal(logits(ModelSpec(str(alone.folder)).build()), logits(final))
    onward = fit(replace(run, policy={"path": str(alone.folder)}), tmp_path / "onward")
    assert onward.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)


def test_modules_to_save_with_adapters_off_and_unknown_names(run: Run, policy_folder: Path, tmp_path: Path):
    lora = Lora(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    whole = replace(run, policy={"path": str(policy_folder), "lora": lora})
    off, live = (
        fit(replace(whole, reference_store=store, objective=objective), tmp_path / str(store))
        for store, objective in ((True, DPO), (False, DPO))
    )
    assert off.logged.column("train/loss") == pytest.approx(live.logged.column("train/loss"), abs=1e-5)
    epsilon = fit(replace(whole, objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05)), tmp_path / "epsilon")
    assert epsilon.logged.column("train/rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match=r"modules_to_save names head, which .* called model\.embed_tokens and lm_head"):
        ModelSpec(str(policy_folder), lora=Lora(modules_to_save=["head"])).build()
