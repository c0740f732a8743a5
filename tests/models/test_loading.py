"""What a folder asks for is in the model, or the model is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_policy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.errors import UserError
from lit_pref.models.loading import refuse_lost_heads, refuse_other_task
from lit_pref.models.spec import ModelSpec
from lit_pref.run.first_lines import _attention

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")


def copied(source: Path, to: Path, **config: object) -> Path:
    """A copy of a model's folder with other values in its config.json."""
    shutil.copytree(source, to)
    values = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**values, **config}))
    return to


@pytest.mark.parametrize("named", [True, False])
def test_a_reward_model_is_not_loaded_without_its_head(named: bool, tmp_path: Path):
    base = make_policy(tmp_path / "base", seed=0, tie_word_embeddings=True)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "reward")
    folder = tmp_path / "reward" if named else copied(tmp_path / "reward", tmp_path / "unnamed", architectures=None)
    words = "is a LlamaForSequenceClassification" if named else r"hold score\.weight, the head of a classifier"
    with pytest.raises(UserError, match=rf"{words}.*give the language model that it was made from"):
        ModelSpec(path=str(folder)).build()


@pytest.mark.parametrize(
    "name", ["Qwen2ForTokenClassification", "GPT2ForQuestionAnswering", "LlamaForRewardModel", "InternLM2RewardModel"]
)
def test_a_class_for_another_task_is_refused(name: str):
    with pytest.raises(UserError, match=f"is a {name}, not a causal language model"):
        refuse_other_task("model", AutoConfig.for_model("llama", architectures=[name]))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"])
def test_language_models_are_not(name: str):
    assert refuse_other_task("model", AutoConfig.for_model("llama", architectures=[name])) is None


def test_other_weights_that_are_left_out_are_warned_of():
    refuse_lost_heads("model", [])
    with pytest.warns(UserWarning, match="no place for are left out: mtp.0, mtp.1, mtp.2 and 1 more"):
        refuse_lost_heads("model", {f"mtp.{k}" for k in range(4)})


@pytest.mark.parametrize("method", ["fp8", "unknown"])  # dequantized on a CPU; skipped
def test_a_quantization_that_is_not_applied_is_refused(method: str, policy_folder: Path, tmp_path: Path):
    folder = copied(policy_folder, tmp_path / "model", quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=rf"asks for quantization \({method}\), which was not applied"):
        ModelSpec(path=str(folder)).build()


def test_random_weights_are_not_quantized_either(policy_folder: Path):
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    spec = ModelSpec(config={**config, "quantization_config": {"quant_method": "fp8"}}, tokenizer=str(policy_folder))
    with pytest.raises(UserError, match=r"asks for quantization \(fp8\), which was not applied"):
        spec.build()


def test_a_built_model_does_not_use_the_attention_of_cudnn_whose_gradients_may_be_nan(policy_folder: Path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    ModelSpec(path=str(policy_folder)).build()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert _attention(torch.device("cpu")) is None
    line = _attention(torch.device("cuda"))
    assert line is not None and line.startswith("cuDNN's kernel is off in this process")
