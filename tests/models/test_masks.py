"""Padded rows are read without a mask for their padding, and their scores are those of rows without padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_policy, write_pairs
from shapeless_device import META, without_autocast
from training_runs import Run, fit
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.models.experts import use_eager_experts_in_float64
from lit_pref.models.masks import sdpa_mask_of_rows
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.sft import SFT
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scoring.layout import layout_being_read, reading_rows
from lit_pref.scoring.scorer import Scorer, score_pairs

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"vocab_size": 61, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = SMALL | {"num_key_value_heads": 2}
FULL = {
    "llama": GROUPED,
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": GROUPED | {"num_local_experts": 2, "sliding_window": None},
}
WINDOWS = {
    "mistral": GROUPED | {"sliding_window": 4},
    "gemma3_text": GROUPED | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
}
OTHERS = {
    "falcon": SMALL | {"alibi": False},  # asks for a mask in any case
    "falcon-alibi": SMALL | {"alibi": True},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 4},  # eager attention, because of its soft-cap
}
TEXT = TruncatedText("", "", "", True, True)
SIDES = [([1, 5, 6], [9, 10, 11, 12, 2], [14, 2]), ([1], [13], [16, 17, 18, 19, 20, 21, 22, 2])]
PAIRS = [PreferencePair(str(k), *ids, None, None, {}, None, TEXT) for k, ids in enumerate(SIDES)]


def tiny(family: str, settings: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    config = AutoConfig.for_model(family.partition("-")[0], **settings)
    for name in config.to_dict():
        if "dropout" in name:
            setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    use_eager_experts_in_float64(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)  # away from the start, where logits are nearly equal
    return model


def padded_batch() -> PreferenceBatch:
    return collate(PAIRS, 0, layout="padded")


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The masks with which torch's attention is called."""
    given: list[Any] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        given.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return given


@pytest.mark.parametrize(("family", "settings"), (FULL | WINDOWS | OTHERS).items(), ids=[*FULL, *WINDOWS, *OTHERS])
def test_scores_and_gradients_of_padded_rows_are_those_of_rows_alone(
    family: str, settings: dict[str, Any], masks: list[Any]
):
    model = tiny(family, settings)
    scores = score_pairs(model, padded_batch())
    ours = torch.cat([scores.chosen.scores, scores.rejected.scores])
    if family in FULL:
        assert masks and all(mask is None for mask in masks)
    if family in WINDOWS:  # a mask of positions, which all rows share
        assert masks and all(mask.stride(0) == 0 or mask.shape[0] == 1 for mask in masks)
    rows = [(p, r) for side in (1, 2) for p, r in ((ids[0], ids[side]) for ids in SIDES)]
    logps = [torch.log_softmax(model(torch.tensor([p + r])).logits[0], -1) for p, r in rows]
    alone = [table[torch.arange(len(p) - 1, len(p) + len(r) - 1), r] for table, (p, r) in zip(logps, rows, strict=True)]
    expected = torch.stack([values.sum() for values in alone])
    # Norms of Gemma are in fp32; its padding beyond a window is NaN in transformers' own eager attention.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if family.startswith("gemma") else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(ours, expected, **tolerance)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), parameters, allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", [DPO, SFT])
def test_gemma_2_trains_on_rows_padded_beyond_its_window_in_float64(objective: Any, tmp_path: Path):
    """Transformers' own mask gives no numbers there: its lowest float64 is -inf in the softmax, which is in float32."""
    settings = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
    folder = make_policy(tmp_path / "gemma", 0, model_type="gemma2", **settings)
    data = {"train": str(write_pairs(tmp_path / "train.jsonl", 8)), "val_fraction": 0.0, "global_batch": 4}
    losses = [
        fit(Run({"path": str(folder), "dtype": dtype}, data, objective), tmp_path / dtype).logged.column("train/loss")
        for dtype in ("float64", "float32")
    ]
    assert len(losses[0]) == 2
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_outside_a_batch_is_masked_as_before(attention: str):
    model = tiny("llama", GROUPED, torch.float32)
    model.set_attn_implementation(attention)
    ids, mask = torch.tensor([[0, 0, 5, 6], [1, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        alone = model(ids[:1, 2:], position_ids=torch.tensor([[0, 1]])).logits[0, -1]
        left = model(ids, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])).logits[0, -1]
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_is_not_causal_keeps_the_mask_of_its_padding(attention: str):
    """Both directions, and a causal mask that a model widens: there, tokens see the padding on their right."""
    model = tiny("llama", GROUPED)
    model.set_attn_implementation(attention)
    padding, embeds = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), torch.zeros(2, 4, 32)

    def masks() -> list[torch.Tensor]:
        def widened(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
            return kv_idx < 4

        return [
            create_bidirectional_mask(model.config, embeds, padding),
            create_causal_mask(model.config, embeds, padding, None, None, or_mask_function=widened),
        ]

    outside = masks()
    with reading_rows("padded"):
        inside = masks()
    torch.testing.assert_close(inside, outside)
    seen = [mask == 0 if attention == "eager" else mask for mask in inside]
    assert not any(bool(mask[0, :, :, 3].any()) for mask in seen) and all(bool(mask[1].any()) for mask in seen)


@pytest.mark.parametrize(
    ("device", "dtype", "spared"),
    [
        ("cpu", torch.float32, True),
        ("meta", torch.float32, False),  # any device but a CPU; nothing can be read from this one
        ("meta", torch.bfloat16, True),
        ("meta", torch.float16, True),
    ],
)
def test_a_gpu_builds_the_mask_in_fp32_and_looks_at_no_padding(device: str, dtype: torch.dtype, spared: bool):
    padding = torch.ones(2, 5, dtype=torch.bool, device=device)
    with reading_rows("padded"):
        mask = sdpa_mask_of_rows(
            2, 5, 5, attention_mask=padding, allow_is_causal_skip=True, device=torch.device(device), dtype=dtype
        )
    assert (mask is None) == spared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_forward_pass_of_padded_rows_reads_nothing_from_its_device(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """The meta device has no numbers, so that every read of one raises an error."""
    without_autocast(monkeypatch)
    model = tiny(family, (FULL | WINDOWS)[family], dtype).to("meta")
    scores = score_pairs(model, padded_batch().to(META))
    (scores.chosen.scores - scores.rejected.scores).sum().backward()
    assert scores.chosen.scores.shape == (2,) and scores.chosen.scores.device.type == "meta"


def test_reading_ends_also_after_an_error():
    with pytest.raises(RuntimeError), reading_rows("prefix_shared"):
        assert layout_being_read() == "prefix_shared"
        raise RuntimeError
    assert layout_being_read() is None


def test_a_scorer_gives_the_mask_itself_to_the_model():
    """Positions of OPT and the router loss of experts are made from it."""
    model, seen = tiny("opt", FULL["opt"]), []
    model.model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
    Scorer(model)(padded_batch())
    assert torch.equal(seen[0], padded_batch().rows.attention_mask)
