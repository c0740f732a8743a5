import math

import pytest
import torch
from conftest import make_policy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_pref.errors import UserError
from lit_pref.models.responding import Request, respond, text_after, without_stop
from lit_pref.models.sampling import Sampling
from lit_pref.models.spec import ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer

WORDS = ["<pad>", "<bos>", ":", "<eos>", *"abcdefgh"]
END = WORDS.index("<eos>")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = save_word_tokenizer(tmp_path_factory.mktemp("words"), WORDS, "<pad>", "<bos>", "<eos>")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def policy(tmp_path_factory, cache):
    spec = ModelSpec(path=str(make_policy(tmp_path_factory.mktemp("model") / "policy", seed=3)))
    return spec.build(), spec.load_tokenizer()


def memoryless(logits):
    """A model that gives every next token these logits, whatever came before: Phi's output layer has a bias."""
    shape = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("phi", **shape, intermediate_size=16, eos_token_id=END)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(logits)
    return model


def requests(tokenizer, number, most=12):
    texts = [" ".join(["red", "green", "tin", "oak", "one"][: 1 + k % 5]) + f" {k} :" for k in range(number)]
    return [
        Request([tokenizer.bos_token_id, *tokenizer(text)["input_ids"]], 1000 + k, most) for k, text in enumerate(texts)
    ]


def ids_of(responses):
    return [response.ids for response in responses]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.8, top_p=0.9), Sampling(1.2, top_k=7)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # rotary and absolute positions
def test_a_response_is_the_same_in_any_batch(tmp_path, kind, sampling):
    spec = ModelSpec(path=str(make_policy(tmp_path / kind, seed=3, model_type=kind)))
    model, tokenizer = spec.build(), spec.load_tokenizer()
    asked = requests(tokenizer, 40)
    together = respond(model, tokenizer, asked, sampling, [tokenizer.eos_token_id])
    for size in (1, 3, 16):
        apart = []
        for start in range(0, len(asked), size):
            apart += respond(model, tokenizer, asked[start : start + size], sampling, [tokenizer.eos_token_id])
        assert ids_of(apart) == ids_of(together)
        assert [one.logprob for one in apart] == pytest.approx([one.logprob for one in together], abs=1e-3)
    backwards = respond(model, tokenizer, asked[::-1], sampling, [tokenizer.eos_token_id])
    assert ids_of(backwards[::-1]) == ids_of(together)
    assert len({tuple(ids) for ids in ids_of(together)}) > 20


def test_log_probs_are_those_of_a_forward_pass_over_the_whole_text(policy):
    model, tokenizer = policy
    asked = requests(tokenizer, 6)
    for request, response in zip(asked, respond(model, tokenizer, asked, Sampling(0.7, top_k=5), [2]), strict=True):
        whole = torch.tensor([[*request.prompt, *response.ids]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model.eval()(whole).logits.double(), -1)[0, len(request.prompt) - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(response.ids)[:, None]).sum().item()
        assert response.logprob == pytest.approx(expected, abs=1e-3)


def test_greedy_tokens_ignore_keys_and_the_settings_that_the_model_carries(policy):
    model, tokenizer = policy
    asked = requests(tokenizer, 5)
    model.generation_config = GenerationConfig(repetition_penalty=5.0, do_sample=True, top_k=3, max_length=3)
    carried = model.generation_config
    written = respond(model, tokenizer, asked, Sampling(), [tokenizer.eos_token_id])
    assert model.generation_config is carried
    model.generation_config = GenerationConfig()
    again = [Request(request.prompt, 7, request.most) for request in asked]
    assert ids_of(respond(model, tokenizer, again, Sampling(), [tokenizer.eos_token_id])) == ids_of(written)
    for request, response in zip(asked, written, strict=True):
        ids = list(request.prompt)
        while len(ids) < len(request.prompt) + 12 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert response.ids == ids[len(request.prompt) :]


def test_responses_end_at_every_end_token_with_their_own_limit(words):
    logits = torch.full((len(WORDS),), -math.inf)
    logits[END], logits[2], logits[4] = math.log(0.2), math.log(0.1), math.log(0.7)
    asked = [Request([1, 4], k, 1 + k % 6) for k in range(600)]
    finished = {"stop": 0, "length": 0}
    for request, response in zip(
        asked, respond(memoryless(logits), words, asked, Sampling(1.0), [END, 2]), strict=True
    ):
        *before, last = response.ids
        assert set(before) <= {4} and len(response.ids) <= request.most
        assert response.finish == ("stop" if last in (END, 2) else "length")
        assert response.text == " a" * response.ids.count(4) and (response.finish == "stop" or last == 4)
        expected = sum(float(logits[token]) for token in response.ids)
        assert response.logprob == pytest.approx(expected, abs=1e-5)
        finished[response.finish] += 1
    expected = sum(0.7 ** (1 + k % 6) for k in range(600))
    assert abs(finished["length"] - expected) < 5 * math.sqrt(600 * 0.25)


def test_a_stop_string_ends_a_row_and_is_cut_from_its_text(words):
    logits = torch.tensor([-math.inf] * 3 + [0.0] * 9)
    model = memoryless(logits)
    asked = [Request([1, 4], k, 20) for k in range(200)]
    plain = respond(model, words, asked, Sampling(1.0), [END])
    steps = []
    stopped = respond(model, words, asked, Sampling(1.0), [END], ["c d", " h"], steps.append)
    for whole, response in zip(plain, stopped, strict=True):
        text, found = without_stop(whole.text, ["c d", " h"])
        assert response.text == text and response.finish == ("stop_string" if found else whole.finish)
        assert response.ids == whole.ids[: len(response.ids)] and (found or len(response.ids) == len(whole.ids))
        assert not found or "c d" in (decoded := words.decode(response.ids)) or " h" in decoded
    assert {response.finish for response in stopped} >= {"stop", "stop_string"}
    assert sum(steps) == sum(len(response.ids) for response in stopped) and len(steps) == 3


def test_equal_prompts_with_other_keys_are_drawn_apart(words):
    logits = torch.tensor([-math.inf] * 4 + [0.0] * 8)
    written = respond(memoryless(logits), words, [Request([1, 4], k, 10) for k in range(50)], Sampling(1.0), [END])
    assert len({tuple(response.ids) for response in written}) == 50


def test_the_global_random_state_is_neither_read_nor_changed(policy):
    model, tokenizer = policy
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = respond(model, tokenizer, requests(tokenizer, 3), Sampling(1.0), [2])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert ids_of(respond(model, tokenizer, requests(tokenizer, 3), Sampling(1.0), [2])) == ids_of(first)


def test_logits_that_are_not_finite_are_refused(words):
    with pytest.raises(UserError, match="the model's logits are not finite"):
        respond(memoryless(torch.full((len(WORDS),), math.nan)), words, [Request([1, 4], 0, 3)], Sampling(1.0), [END])


def test_the_blank_after_a_prompt_is_kept(policy):
    _, tokenizer = policy
    prompt, ids = tokenizer("one two :")["input_ids"], tokenizer(" three", add_special_tokens=False)["input_ids"]
    assert text_after(tokenizer, prompt, ids) == " three"


def test_text_before_the_first_of_several_stop_strings():
    assert without_stop("abcabc", ["c", "b"]) == ("a", True)
    assert without_stop("abc", ["x"]) == ("abc", False)
    assert without_stop("abc", []) == ("abc", False)
