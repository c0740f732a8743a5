"""Which models read shared rows, that they read them right, and that the others are told apart."""

from dataclasses import dataclass
from typing import Any, ClassVar

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError
from lit_pref.models import prefix_sharing as sharing
from lit_pref.models.generation import generate
from lit_pref.models.loading import compile_blocks
from lit_pref.models.prefix_sharing import ATTENTION, enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scores import TokenLogps
from lit_pref.scoring.layout import reading_rows
from lit_pref.scoring.scorer import Scorer, score_pairs

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"vocab_size": 61, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = SMALL | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61}
SHARED = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "mistral-whole": GROUPED | {"sliding_window": None},
    "gemma": GROUPED | {"head_dim": 8},
    "phi3": GROUPED | {"sliding_window": None},
    "gpt_neox": SMALL,
    "olmo": GROUPED,
    "granite": GROUPED,
    "cohere": GROUPED,
    "gpt2": GPT2,
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
PADDED = {
    "mistral": (GROUPED | {"sliding_window": 4}, "a sliding window of 4 tokens"),
    "gemma2": (GROUPED | {"head_dim": 8, "sliding_window": 4}, "layers of type sliding_attention"),
    "gemma3_text": (GROUPED | {"head_dim": 8, "sliding_window": 4}, "layers of type sliding_attention"),
    "qwen2-window": (
        GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "layers of type sliding_attention",
    ),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61}, "a tiny copy"),
    "falcon": (SMALL | {"alibi": False}, "a tiny copy"),
    "falcon-alibi": (SMALL | {"alibi": True}, "ALiBi"),
    "mixtral": (GROUPED | {"num_local_experts": 2}, "experts"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61}, "linear_attention"),
    "t5": ({"d_model": 32, "vocab_size": 61}, "encoder-decoder"),
    "llama-dynamic": (
        GROUPED | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "changes with the row's length",
    ),
}
EVERY = {**SHARED, **{name: config for name, (config, _) in PADDED.items() if name not in ("t5", "mamba")}}


def config_of(family: str, config: dict[str, Any]) -> Any:
    made = AutoConfig.for_model(family.partition("-")[0], **config)
    for name in made.to_dict():
        if "dropout" in name or "pdrop" in name:
            setattr(made, name, 0.0)
    return made


@dataclass
class OfConfig(ModelSpec):
    """A policy with this very configuration, and no tokenizer."""

    made: Any = None

    def configuration(self) -> Any:
        return self.made


def policy_of(family: str, config: dict[str, Any], **options: Any) -> ModelSpec:
    return OfConfig(config={"model_type": family}, made=config_of(family, config), **options)


def model_of(family: str, config: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    """With weights so large that attention is far from even."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config_of(family, config), dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * 2 / parameter.shape[-1] ** 0.5)
    return model.train()


TEXT = TruncatedText("", "", "", True, True)


def pair(name: str, prompt: int, chosen: int, rejected: int) -> PreferencePair:
    """With random ids, and these many of them."""
    draw = torch.Generator().manual_seed(prompt)
    ids = [torch.randint(3, 61, (n,), generator=draw).tolist() for n in (prompt, chosen, rejected)]
    return PreferencePair(name, *ids, None, None, {}, None, TEXT)


PAIRS = [pair("a", 9, 5, 8), pair("b", 1, 7, 2), pair("c", 12, 1, 6)]  # all longer than the windows above


def logps_by_hand(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token log-probs of every response, each alone in an unpadded row, chosen first."""
    rows = []
    for side in ("chosen", "rejected"):
        for p in PAIRS:
            response = getattr(p, side)
            logits = model(torch.tensor([p.prompt + response]), use_cache=False).logits[0]
            logps = logits.log_softmax(-1)
            rows.append(torch.stack([logps[len(p.prompt) - 1 + k, token] for k, token in enumerate(response)]))
    return torch.cat(rows), torch.stack([row.sum() for row in rows])


def layout_of(family: str) -> str:
    return "prefix_shared" if prefix_sharing_obstacle(policy_of(family, EVERY[family])) is None else "padded"


# What transformers itself computes in lower precision: Gemma 2's masked rows and the experts of Mixtral, which are
# given in float32 here, and Bloom's ALiBi.
ROUNDED = {"gemma2": 1e-4, "mixtral": 1e-4, "bloom": 1e-6}


@pytest.mark.parametrize("family", EVERY)
def test_each_family_is_read_rightly_in_the_layout_that_is_taken_for_it(family: str):
    model = model_of(family, EVERY[family], torch.float32 if family in ("gemma2", "mixtral") else torch.float64)
    expected, sums = logps_by_hand(model)
    expected_gradients = torch.autograd.grad((sums * torch.arange(1.0, 7.0)).sum(), list(model.parameters()))
    layout = layout_of(family)
    assert (layout == "prefix_shared") == (family in SHARED)
    if layout == "prefix_shared":
        enable_prefix_sharing(model)
    scores = score_pairs(model, collate(PAIRS, 0, layout=layout), frozenset([TokenLogps()]))
    sides = [(side.statistics[TokenLogps()], side.lengths) for side in (scores.chosen, scores.rejected)]
    found = torch.cat([row[: int(n)] for values, lengths in sides for row, n in zip(values, lengths, strict=True)])
    assert (found - expected).abs().max() < ROUNDED.get(family, 1e-10)
    both = torch.cat([scores.chosen.scores, scores.rejected.scores])
    gradients = torch.autograd.grad((both * torch.arange(1.0, 7.0)).sum(), list(model.parameters()))
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        # Norms and rotations are computed in float32 inside most of these models.
        assert (ours - theirs).norm() <= ROUNDED.get(family, 1e-6) * theirs.norm().clamp_min(1e-6)


@pytest.mark.parametrize("family", SHARED)
def test_float32_differs_by_its_rounding_only(family: str):
    model = model_of(family, SHARED[family], torch.float32)
    enable_prefix_sharing(model)
    for p in model.parameters():
        p.data /= 2  # logits of a trained model's size: rounding grows with them
    need = frozenset([TokenLogps()])
    shared, padded = (
        score_pairs(model, collate(PAIRS, 0, layout=layout), need) for layout in ("prefix_shared", "padded")
    )
    sums = [(scores.chosen.scores - 2 * scores.rejected.scores).sum() for scores in (shared, padded)]
    # All in one: that of a key's bias, which softmax does not see, is nothing but rounding.
    gradients = [torch.autograd.grad(s, list(model.parameters())) for s in sums]
    one, other = (torch.cat([g.flatten() for g in own]) for own in gradients)
    assert (one - other).norm() <= 1e-4 * other.norm()
    for ours, theirs in ((shared.chosen, padded.chosen), (shared.rejected, padded.rejected)):
        assert (ours.statistics[TokenLogps()] - theirs.statistics[TokenLogps()]).abs().max() < 1e-5


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_cannot_share_is_told_apart_and_the_reason_said(family: str):
    config, reason = PADDED[family]
    assert reason in (prefix_sharing_obstacle(policy_of(family, config)) or "")


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "qwen2-window", "bloom", "falcon-alibi"])
def test_the_later_nets_catch_what_the_first_would_let_through(family: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharing, "_config_reason", lambda config: None)
    assert "a tiny copy" in (prefix_sharing_obstacle(policy_of(family, PADDED[family][0])) or "")


def test_the_last_net_alone_sees_a_window(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharing, "_config_reason", lambda config: None)
    monkeypatch.setattr(sharing, "_WITHOUT_EFFECT", sharing._WITHOUT_EFFECT | {"sliding_window"})
    reason = prefix_sharing_obstacle(policy_of("mistral", GROUPED | {"sliding_window": 4096}))
    assert "reads prefix-shared rows wrongly" in (reason or "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attention": "eager"}, "policy.attention is 'eager'"),
        ({"dropout": 0.1}, "dropout"),
        ({"lora": Lora(dropout=0.1)}, "dropout"),
        ({"trust_remote_code": True}, "its own code"),
    ],
)
def test_settings_that_shared_rows_do_not_have_are_named(options: dict[str, Any], reason: str):
    assert reason in (prefix_sharing_obstacle(policy_of("llama", GROUPED, **options)) or "")


def test_the_nets_leave_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    prefix_sharing_obstacle(policy_of("llama", GROUPED))
    assert torch.equal(torch.randn(3), expected)


class Forgetful(nn.Module):
    """A model that does not pass on the arguments of its attention."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, shared_attention: Any = None, **inputs: Any) -> Any:
        return self.model(**inputs)


def test_a_model_that_forgets_the_attention_is_refused_and_not_read_as_one_long_row():
    model = model_of("llama", GROUPED)
    enable_prefix_sharing(model)
    batch = collate(PAIRS, 0, layout="prefix_shared")
    with reading_rows("prefix_shared"), pytest.raises(ValueError, match="does not pass `shared_attention` on"):
        Forgetful(model)(input_ids=batch.rows.input_ids, position_ids=batch.rows.position_ids)


def test_a_model_without_the_attention_is_refused_a_shared_row():
    with pytest.raises(ValueError, match=r"call enable_prefix_sharing\(model\) first"):
        score_pairs(model_of("llama", GROUPED), collate(PAIRS, 0, layout="prefix_shared"))


def test_an_attention_that_is_sdpa_anyway_can_be_asked_for():
    assert prefix_sharing_obstacle(policy_of("llama", GROUPED, attention="sdpa")) is None


def test_attention_refuses_arguments_that_it_does_not_implement():
    model = model_of("llama", GROUPED)
    enable_prefix_sharing(model)
    model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="passes dropout to its attention"):
        score_pairs(model, collate(PAIRS, 0, layout="prefix_shared"))


class Words:
    """As much of a tokenizer as generation asks for."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0
    all_special_ids: ClassVar[list[int]] = [0, 1, 2]
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_left_padded_generation_is_the_same_with_the_attention_registered(family: str):
    model = model_of(family, SHARED[family])
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    expected = generate(model, Words(), prompts, max_new_tokens=8)
    alone = [generate(model, Words(), [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert expected == alone
    enable_prefix_sharing(model)
    assert model.config._attn_implementation == ATTENTION
    assert generate(model, Words(), prompts, max_new_tokens=8) == expected


def test_a_padded_batch_is_read_as_before():
    model = model_of("llama", GROUPED)
    before = score_pairs(model, collate(PAIRS, 0))
    enable_prefix_sharing(model)
    after = score_pairs(model, collate(PAIRS, 0))
    assert torch.equal(before.chosen.scores, after.chosen.scores)
    assert torch.equal(before.rejected.scores, after.rejected.scores)


def scores_and_gradients(model: nn.Module, layout: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    scores = Scorer(model)(collate(PAIRS, 0, layout=layout))
    difference = scores.chosen.scores - scores.rejected.scores
    trained = [p for p in model.parameters() if p.requires_grad]
    return difference.detach(), list(torch.autograd.grad(difference.exp().sum(), trained))


@pytest.mark.parametrize("form", ["gradient checkpointing", "adapters", "full logits"])
def test_layouts_agree_in_every_form_of_a_model(form: str):
    model: Any = model_of("llama", GROUPED)
    enable_prefix_sharing(model)
    if form == "gradient checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if form == "adapters":
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    if form == "full logits":
        model.lm_head.register_forward_hook(lambda module, args, output: output * 2)  # a head that cannot be read
    (ours, gradients), (theirs, expected) = (
        scores_and_gradients(model, layout) for layout in ("prefix_shared", "padded")
    )
    assert (ours - theirs).abs().max() < 1e-10
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm().clamp_min(1e-6)


def test_compiled_blocks_give_the_same_and_know_no_layout():
    plain, compiled = model_of("llama", GROUPED), model_of("llama", GROUPED)
    for model in (plain, compiled):
        enable_prefix_sharing(model)
    torch.compiler.reset()
    compile_blocks(compiled, "aot_eager")
    graphs = []
    for k in range(4):
        batch = collate([pair("a", 9 + k, 5, 8 + 2 * k), pair("b", 3, 7, 2), *PAIRS[:k]], 0, layout="prefix_shared")
        sums = [score_pairs(model, batch).chosen.scores.sum() for model in (plain, compiled)]
        assert abs(sums[0] - sums[1]) < 1e-12
        ours, theirs = (
            torch.autograd.grad(s, list(m.parameters())) for s, m in zip(sums, (plain, compiled), strict=True)
        )
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(ours, theirs, strict=True))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] == graphs[0]


def test_an_unknown_compiler_is_refused():
    with pytest.raises(UsageError, match=r"policy\.compile 'inductr' is not a backend"):
        compile_blocks(model_of("llama", GROUPED), "inductr")
