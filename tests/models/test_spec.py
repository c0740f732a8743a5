import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
)

from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Corpus, Lora, ModelSpec

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LLAMA = {"model_type": "llama", **SMALL}
TEXTS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 20
CORPUS = Corpus("some-texts", lambda: TEXTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path):
    """A model folder with its tokenizer."""
    policy = ModelSpec(config=LLAMA, vocabulary=300)
    policy.load_tokenizer(CORPUS).save_pretrained(tmp_path / "model")
    policy.build().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def from_config(**settings):
    policy = ModelSpec(config=settings.pop("config", LLAMA), vocabulary=300, **settings)
    policy.load_tokenizer(CORPUS)
    return policy


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_random_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    first, state = weights(from_config().build()), torch.get_rng_state()
    torch.manual_seed(6)
    second, other = weights(from_config().build()), weights(from_config(seed=1).build())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)  # neither read nor changed


def test_a_seed_gives_the_same_adapters():
    first, second = (weights(from_config(lora=Lora(r=2)).build()) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_contexts_of_a_trainer_do_not_reach_the_weights():
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = from_config(lora=Lora(r=2)).build()
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}
    torch.testing.assert_close(weights(model), weights(from_config(lora=Lora(r=2)).build()), rtol=0, atol=0)


def test_config_takes_its_vocabulary_and_special_tokens_from_the_tokenizer():
    policy = from_config()
    model, tokenizer = policy.build(), policy.load_tokenizer()
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_weights_have_the_dtype_asked_for_and_adapters_at_least_fp32(dtype, folder):
    expected = getattr(torch, dtype)
    drawn, loaded = from_config(dtype=dtype).build(), ModelSpec(path=str(folder), dtype=dtype).build()
    assert {p.dtype for p in drawn.parameters()} == {p.dtype for p in loaded.parameters()} == {expected}
    assert drawn.config.dtype == loaded.config.dtype == expected
    # `folder` was drawn from the same seed: the same numbers, rounded, in every dtype.
    torch.testing.assert_close(weights(drawn), weights(loaded), rtol=0, atol=0)
    adapted = ModelSpec(path=str(folder), dtype=dtype, lora=Lora(r=2)).build()
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trained == {torch.float64 if dtype == "float64" else torch.float32}


def test_a_loaded_model_is_in_train_mode_and_equals_its_file(folder):
    model = ModelSpec(path=str(folder)).build()
    assert all(module.training for module in model.modules())
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == weights(model).keys()
    torch.testing.assert_close(weights(model), saved, rtol=0, atol=0)


GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
OPT = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OPT |= {"word_embed_proj_dim": 16, "layerdrop": 0.5}


@pytest.mark.parametrize("config", [GPT2, OPT, LLAMA | {"attention_dropout": 0.3}], ids=lambda c: c["model_type"])
def test_dropout_is_off_unless_asked_for(config):
    ids = torch.arange(1, 20)[None]
    model = from_config(config=config).build()
    assert torch.equal(model(ids).logits, model(ids).logits)
    noisy = from_config(config=config, dropout=0.5).build()
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits)


def test_gradient_checkpointing_computes_layers_again_and_gives_the_same_gradients():
    ids = torch.arange(1, 20)[None]

    def calls_and_gradient(**settings):
        model = from_config(**settings).build()
        calls = []
        model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        model(ids).logits.square().sum().backward()
        return len(calls), model.model.layers[0].mlp.up_proj.weight.grad

    (plain, expected), (again, gradient) = calls_and_gradient(), calls_and_gradient(gradient_checkpointing=True)
    assert (plain, again) == (1, 2)
    torch.testing.assert_close(gradient, expected)


def test_gradient_checkpointing_reaches_adapters():
    model = from_config(gradient_checkpointing=True, lora=Lora(r=2)).build()
    model(torch.arange(1, 20)[None]).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_with_lora_only_adapters_train_and_the_model_starts_as_its_base():
    ids = torch.arange(1, 20)[None]
    model = from_config(lora=Lora(r=3, alpha=5.0)).build()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * 2 * 7  # A and B of the seven linear layers of each of two blocks; the head has none
    assert torch.equal(model(ids).logits, from_config().build()(ids).logits)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"]) == (3, 5.0 / 3)


def test_lora_takes_named_modules_and_refuses_unknown_ones():
    model = from_config(lora=Lora(r=2, target_modules=["v_proj"])).build()
    assert all("v_proj" in name for name, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(UserError, match=r"policy\.lora cannot be applied: .*nonsense"):
        from_config(lora=Lora(r=2, target_modules=["nonsense"])).build()


def test_attention_is_passed_on_only_where_it_is_set(folder):
    assert ModelSpec(path=str(folder), attention="eager").build().config._attn_implementation == "eager"
    assert from_config(attention="eager").build().config._attn_implementation == "eager"
    default = AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation
    assert ModelSpec(path=str(folder)).build().config._attn_implementation == default


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "either by `path` or by `config`, but neither of them is set"),
        ({"path": "x", "config": LLAMA}, "but both of them are set"),
        ({"config": {}}, "no `model_type`"),
        ({"path": "x", "dtype": "fp8"}, "dtype 'fp8' is unknown: use one of float32, bfloat16, float16, float64"),
        ({"path": "x", "dtype": "fp32"}, r"did you mean float32\?"),
        ({"path": "x", "dtype": "torch.bfloat16"}, r"did you mean bfloat16\?"),
        ({"path": "x", "attention": "flash"}, r"'flash' is unknown: .*; did you mean flash_attention_\d\?; null is"),
        (
            {"path": "x", "attention": "nonsense"},
            r"'nonsense' is unknown: transformers has eager, .*; null is",
        ),
        ({"path": "x", "dropout": 1.0}, r"policy\.dropout is 1\.0"),
        (
            {"path": "x", "head_precision": "bfloat16"},
            r"policy\.head_precision is 'bfloat16': it must be one of auto, bf16, split, fp32; did you mean bf16\?",
        ),
        ({"path": "x", "head_precision": "bf32"}, r"did you mean"),
        ({"path": "x", "head": "scalar", "head_precision": "bf16"}, "a scalar head is always multiplied in fp32"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        ModelSpec(**settings)


def test_the_home_of_an_unknown_user_is_a_folder_that_does_not_exist():
    with pytest.raises(UserError, match="there is no folder '~nobody-here/model'"):
        ModelSpec(path="~nobody-here/model").configuration()


def test_a_damaged_config_is_not_blamed_on_the_tokenizer(folder, tmp_path):
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    (copied / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(UserError, match=r"damaged/config.json' is damaged or not JSON \(.*\): get it again"):
        ModelSpec(path=str(copied)).load_tokenizer()


def test_a_config_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"policy\.config cannot be used: .*no-such-model"):
        from_config(config={"model_type": "no-such-model"}).build()
    with pytest.raises(UserError, match=r"policy\.config is not that of a causal language model"):
        from_config(config={"model_type": "vit"}).build()


def test_a_config_without_tokenizer_or_data_is_refused():
    with pytest.raises(UserError, match=r"set policy\.tokenizer, or give data to train one on"):
        ModelSpec(config=LLAMA).build()


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(folder):
    large = ModelSpec(config=LLAMA, vocabulary=310)
    large.load_tokenizer(CORPUS).save_pretrained(folder.parent / "large")
    with pytest.raises(UserError, match=r"the tokenizer has 310 tokens and the model .* room for 300"):
        ModelSpec(path=str(folder), tokenizer=str(folder.parent / "large")).build()


def test_another_tokenizer_takes_the_place_of_the_models_own(folder):
    small = ModelSpec(config=LLAMA, vocabulary=270)
    small.load_tokenizer(CORPUS).save_pretrained(folder.parent / "small")
    policy = ModelSpec(path=str(folder), tokenizer=str(folder.parent / "small"))
    assert len(policy.load_tokenizer()) == 270
    assert policy.build().config.vocab_size == 300


def test_a_tokenizer_without_padding_pads_with_its_end_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = ModelSpec(path=str(folder)).load_tokenizer()
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<eos>", 2, 300)


def test_a_tokenizer_without_end_token_is_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"no end token \(eos_token\)"):
        ModelSpec(path=str(folder)).load_tokenizer()


def test_a_model_without_a_head_is_refused(folder):
    config = AutoConfig.from_pretrained(folder)
    AutoModel.from_config(config).save_pretrained(folder)
    with pytest.raises(UserError, match=r"lack lm_head\.weight: it is not a complete causal language model"):
        ModelSpec(path=str(folder)).build()


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        ModelSpec(path=str(folder)).build()


def test_code_that_comes_with_a_model_does_not_run_unless_asked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    plain = json.loads((folder / "config.json").read_text())
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise ValueError('this code ran')\n")

    def build(changes, **settings):
        (folder / "config.json").write_text(json.dumps(plain | changes))
        return ModelSpec(path=str(folder), **settings).build()

    # Code for an architecture that transformers does not know, and code in place of one that it does.
    with pytest.raises(UserError, match="cannot be used"):
        build({"model_type": "ours", "auto_map": {"AutoConfig": "code.Ours"}})
    instead = {"auto_map": {"AutoModelForCausalLM": "code.Ours"}}
    assert type(build(instead)) is LlamaForCausalLM
    assert not (folder / "ran").exists()
    with pytest.raises(UserError, match="this code ran"):
        build(instead, trust_remote_code=True)


def test_the_fingerprint_of_a_folder_is_that_of_its_weights_and_config(folder):
    before = ModelSpec(path=str(folder)).fingerprint()
    shutil.copytree(folder, folder.parent / "copy")
    other = ModelSpec(path=str(folder.parent / "copy"), dtype="bfloat16", lora=Lora(), gradient_checkpointing=True)
    assert other.fingerprint() == before and len(before) == 64
    (folder / "tokenizer_config.json").write_text("{}")
    assert ModelSpec(path=str(folder)).fingerprint() == before
    changed = load_file(folder / "model.safetensors")
    changed["lm_head.weight"][0, 0] += 1
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert ModelSpec(path=str(folder)).fingerprint() != before


def test_the_fingerprint_of_a_config_is_that_of_config_seed_and_vocabulary():
    one = from_config().fingerprint()
    assert one == from_config(lora=Lora(), dtype="bfloat16").fingerprint()
    others = [
        from_config(seed=1),
        from_config(config=LLAMA | {"hidden_size": 32}),
        ModelSpec(config=LLAMA, vocabulary=270),
    ]
    others[-1].load_tokenizer(CORPUS)
    assert len({one, *(other.fingerprint() for other in others)}) == 4


def test_a_policy_says_what_it_is_in_one_line(folder):
    assert ModelSpec(path="org/name", revision="v2", dtype="bfloat16", lora=Lora(r=8)).describe() == (
        "org/name at v2, bfloat16, LoRA of rank 8"
    )
    assert from_config(seed=4).describe() == "llama with random weights (seed 4), float32"


def test_building_writes_no_bar_and_leaves_the_switch_as_it_was(folder, capfd):
    capfd.readouterr()
    ModelSpec(path=str(folder)).build()
    assert capfd.readouterr() == ("", "")
    AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err


def test_saved_and_opened_again_it_is_the_same_model(folder):
    model = from_config(dtype="bfloat16").build()
    model.save_pretrained(folder.parent / "again")
    opened = AutoModelForCausalLM.from_pretrained(folder.parent / "again")
    assert opened.dtype == torch.bfloat16
    torch.testing.assert_close(weights(opened), weights(model), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(folder)("the dog").input_ids[0] == 1


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LLAMA | {"max_position_embeddings": 64}, 64),
        ({"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 48}, 48),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 64}, 64),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 64}, None),
        ({"model_type": "bloom"}, None),
        ({"model_type": "mamba"}, None),
        ({"model_type": "xlnet"}, None),  # its configuration says -1
        (LLAMA | {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, None),
    ],
)
def test_a_policy_tells_how_many_tokens_it_was_made_to_read(config, positions):
    assert from_config(config=config).max_length() == positions


def test_the_positions_of_a_folder_are_those_of_its_configuration(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 96}))
    assert ModelSpec(path=str(folder)).max_length() == 96


def test_a_damaged_policy_is_refused_in_a_sentence(policy_folder, tmp_path):
    for name, says in (
        ("model.safetensors", "weights of .* are damaged"),
        ("tokenizer.json", "tokenizer in .* cannot be"),
    ):
        folder = tmp_path / name
        shutil.copytree(policy_folder, folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=says):
            ModelSpec(path=str(folder)).build()
