import math

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_pref.models.generation import also_stop_at, end_ids, generate, stops
from lit_pref.models.word_tokenizer import save_word_tokenizer

LETTERS = [chr(ord("a") + k) for k in range(26)]
WORDS = [
    "<pad>",
    "<bos>",
    ":",
    "<eos>",
    *LETTERS,
    *(letter + letter for letter in LETTERS),
    *(3 * letter for letter in LETTERS),
]
END = WORDS.index("<eos>")
SHAPE = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_word_tokenizer(tmp_path_factory.mktemp("words"), WORDS, "<pad>", "<bos>", "<eos>")
    return AutoTokenizer.from_pretrained(folder)


def memoryless(logits):
    """A model that gives every next token these logits, whatever came before: Phi's output layer has a bias."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("phi", **SHAPE, intermediate_size=16, eos_token_id=END)
    )
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(logits)
    return model


@pytest.fixture(scope="module")
def llama():
    """A model whose every output depends on the whole context; its config names no special tokens of the tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE, intermediate_size=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


PROMPTS = [" a : b", " c", " d e f g h : i j", " aa bb :"]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_are_drawn_from_the_whole_softmax_whatever_settings_the_model_carries(tokenizer, temperature):
    logits = torch.linspace(1.0, -1.0, len(WORDS))
    logits[END] = -math.inf
    model = memoryless(logits)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.5, temperature=0.1, repetition_penalty=9.0, max_length=20, eos_token_id=END
    )
    carried = model.generation_config
    drawn = generate(model, tokenizer, [" a"] * 400, max_new_tokens=25, temperature=temperature, seed=1, batch=200)
    assert model.generation_config is carried
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(WORDS)).double()
    expected = 400 * 25 * torch.softmax(logits.double() / temperature, 0)
    assert counts[END] == 0
    possible = expected > 0
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    freedom = int(possible.sum()) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_greedy_tokens_are_those_of_a_loop_without_cache_or_padding(llama, tokenizer):
    written = generate(llama, tokenizer, PROMPTS, max_new_tokens=12, batch=3)
    for prompt, response in zip(PROMPTS, written, strict=True):
        ids = [1, *tokenizer(prompt)["input_ids"]]
        start = len(ids)
        while len(ids) < start + 12 and ids[-1] != END:
            with torch.no_grad():
                ids.append(int(llama.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        assert response == ids[start:]
    assert len({tuple(response) for response in written}) == len(PROMPTS)


def test_a_response_ends_with_its_first_end_token_or_is_cut(tokenizer):
    logits = torch.full((len(WORDS),), -math.inf)
    logits[END], logits[4] = math.log(0.3), math.log(0.7)
    responses = generate(memoryless(logits), tokenizer, [" a"] * 500, max_new_tokens=4, temperature=1.0)
    for response in responses:
        assert response in ([END], [4, END], [4, 4, END], [4, 4, 4, END], [4, 4, 4, 4])
    assert abs(responses.count([4, 4, 4, 4]) - 500 * 0.7**4) < 4 * math.sqrt(500 * 0.24 * 0.76)


def test_draws_depend_on_the_seed_alone_and_leave_the_global_state(llama, tokenizer):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = generate(llama, tokenizer, PROMPTS, 8, temperature=1.0, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert generate(llama, tokenizer, PROMPTS, 8, temperature=1.0, seed=5) == first
    assert generate(llama, tokenizer, PROMPTS, 8, temperature=1.0, seed=6) != first


def test_equal_prompts_of_two_batches_are_drawn_apart(tokenizer):
    responses = generate(memoryless(torch.zeros(len(WORDS))), tokenizer, [" a"] * 4, 10, temperature=1.0, batch=2)
    assert len({tuple(response) for response in responses}) == 4


def test_texts_get_exactly_one_start_token_and_ids_are_used_as_they_are(llama, tokenizer):
    texts = generate(llama, tokenizer, PROMPTS, 8)
    assert generate(llama, tokenizer, ["<bos>" + prompt for prompt in PROMPTS], 8) == texts
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert generate(llama, tokenizer, [[1, *row] for row in ids], 8) == texts
    assert generate(llama, tokenizer, ids, 8) != texts


def test_every_module_is_back_in_its_mode(llama, tokenizer):
    llama.train()
    llama.model.layers[1].eval()
    modes = [module.training for module in llama.modules()]
    generate(llama, tokenizer, PROMPTS, 2)
    assert [module.training for module in llama.modules()] == modes
    assert len(set(modes)) == 2


def test_dropout_takes_no_part(tokenizer):
    config = AutoConfig.for_model(
        "phi", **SHAPE, intermediate_size=16, eos_token_id=END, embd_pdrop=0.5, resid_pdrop=0.5
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    assert generate(model.train(), tokenizer, PROMPTS, 8) == generate(model.eval(), tokenizer, PROMPTS, 8)


def test_modes_are_back_after_a_failure_too(llama, tokenizer):
    llama.train()
    with pytest.raises(IndexError):
        generate(llama, tokenizer, [[len(WORDS)]], 2)
    assert llama.training


def test_a_word_that_the_config_calls_the_end_is_none(tokenizer):
    logits = torch.full((len(WORDS),), -math.inf)
    logits[WORDS.index(":")] = 0.0
    model = memoryless(logits)
    model.generation_config = GenerationConfig(eos_token_id=WORDS.index(":"))
    assert generate(model, tokenizer, [" a"], 5) == [[WORDS.index(":")] * 5]


def test_a_special_token_that_the_model_names_ends_the_turn_as_well(tokenizer):
    logits = torch.full((len(WORDS),), -math.inf)
    logits[WORDS.index("<bos>")] = 0.0
    model = memoryless(logits)
    model.generation_config = GenerationConfig(eos_token_id=[END, WORDS.index("<bos>")])
    assert generate(model, tokenizer, [" a"], 5) == [[WORDS.index("<bos>")]]


def test_adapters_take_part(llama, tokenizer):
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE, intermediate_size=32)),
        peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, lora_alpha=400),
    )
    with_adapter = generate(adapted, tokenizer, PROMPTS, 8)
    with adapted.disable_adapter():
        assert generate(adapted, tokenizer, PROMPTS, 8) != with_adapter
    assert generate(adapted.merge_and_unload(), tokenizer, PROMPTS, 8) == with_adapter


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(llama, tokenizer, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        generate(llama, tokenizer, PROMPTS, 2, temperature=temperature)


def test_a_folder_stops_where_generation_here_does(tokenizer):
    model = memoryless(torch.zeros(len(WORDS)))
    model.generation_config = GenerationConfig(eos_token_id=WORDS.index(":"))
    here = end_ids(model, tokenizer)
    also_stop_at(model, tokenizer, [WORDS.index("<bos>")])
    assert here == [END] and stops(model) == end_ids(model, tokenizer) == [END, WORDS.index("<bos>")]
