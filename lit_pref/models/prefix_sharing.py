"""Prefix sharing in unmodified Hugging Face models: the attention function, and which models can use it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_pref.models.experts import has_experts
from lit_pref.models.loading import building, first_line
from lit_pref.models.masks import sdpa_mask_of_rows
from lit_pref.models.spec import ModelSpec
from lit_pref.scoring.layout import layout_being_read, padded, prefix_shared, reading_rows
from lit_pref.scoring.prefix_attention import PrefixSharedAttention

ATTENTION = "lit_pref_shared"
"""The name of the attention function in transformers."""


def enable_prefix_sharing(model: Any) -> None:
    """Let a model read prefix-shared rows; on any other input it behaves as with `sdpa`."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.set_attn_implementation(ATTENTION)


def prefix_sharing_obstacle(policy: ModelSpec) -> str | None:
    """Return the reason why a model cannot read prefix-shared rows, to end a sentence with; None if it can.

    There are three checks, in this order: the configuration; an attention function that refuses every argument it does
    not implement; and a tiny copy of the model, with large weights and with its sliding window, if any, shorter than
    the rows, whose hidden states must agree in both layouts. With the original window a probe of this length would
    pass for models with sliding-window attention.
    """
    if policy.attention not in (None, "sdpa"):
        return f"policy.attention is {policy.attention!r}"
    if policy.dropout > 0 or (policy.lora is not None and policy.lora.dropout > 0):
        return "dropout would be drawn once per prompt, not once per response"
    if policy.trust_remote_code:
        return "the model runs its own code"
    config = policy.configuration()
    return _config_reason(config) or _probe_reason(config)


# First check: the configuration

_STATES = ("state_size", "ssm_cfg", "mamba_d_state", "linear_num_key_heads", "conv_kernel", "attention_window_size")
_CAPPED = ("attn_logit_softcapping", "attn_logit_softcap", "attention_logit_cap")


def _config_reason(config: Any) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    text = config.get_text_config()

    def has(*names: str) -> bool:
        return any(getattr(text, name, None) for name in names)

    kinds = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ["full_attention"])
    if others := kinds - {"full_attention"}:
        return f"it has layers of type {', '.join(sorted(others))}"
    if has("sliding_window") and getattr(text, "use_sliding_window", True):
        return f"its attention has a sliding window of {text.sliding_window} tokens"
    if has("alibi"):
        return "its attention depends on distances within the row (ALiBi)"
    if has(*_CAPPED):
        return "its attention has a soft-cap on the logits"
    if has(*_STATES):
        return "it carries a recurrent state along the row"
    if has_experts(config):
        return "it routes tokens to experts, and its router loss depends on their number"
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if changing := kinds & {"dynamic", "longrope"}:
        return f"its rotary embedding changes with the row's length ({changing.pop()})"
    return None


# Second check: the arguments of the attention function

_WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}


@torch.compiler.disable  # compiled, each batch layout would need a new graph, which is never used again
def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    shared_attention: PrefixSharedAttention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    if shared_attention is None:
        if layout_being_read() == "prefix_shared":
            raise ValueError(f"{type(module).__name__} does not pass `shared_attention` on to its attention")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
    # Neutral values of unknown arguments are fine; any other value would be ignored silently.
    others |= {"attention_mask": attention_mask, "dropout": dropout, "is_causal": None if is_causal else is_causal}
    for name, given in others.items():
        if name not in _WITHOUT_EFFECT and given is not None and not (name == "dropout" and given == 0):
            raise ValueError(
                f"{type(module).__name__} passes {name} to its attention, which prefix-shared rows do not support"
            )
    return shared_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask_of_rows)


# Third check: both layouts agree in a tiny copy of the model

_TINY = {
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "max_window_layers": 0,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16]]
_CHOSEN = [[17, 18, 19, 20, 21], [22, 23]]
_REJECTED = [[24, 25, 26], [27, 28, 29, 30, 31, 32, 33]]


@torch.no_grad()
def _probe_reason(config: PretrainedConfig) -> str | None:
    try:
        with building(seed=0):
            model = _tiny(config)
            worst = _difference(model)
    except Exception as error:  # errors depend on the model family: a model that cannot be probed is not trusted
        return f"a tiny copy of it cannot read prefix-shared rows ({first_line(error)})"
    return (
        None
        if worst < 1e-9
        else f"a tiny copy of it reads prefix-shared rows wrongly (hidden states differ by {worst:.0e})"
    )


def _tiny(config: PretrainedConfig) -> Any:
    tiny: Any = copy.deepcopy(config)
    text = tiny.get_text_config()
    grouped = (getattr(text, "num_key_value_heads", None) or 0) < text.num_attention_heads
    for name, value in _TINY.items():
        if getattr(text, text.attribute_map.get(name, name), None) is not None:
            setattr(text, name, value)
    if not grouped and hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = text.num_attention_heads
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    tiny.dtype = torch.float64
    model = AutoModelForCausalLM.from_config(tiny, dtype=torch.float64, attn_implementation=ATTENTION).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # Weights are enlarged, because with the usual size attention is nearly uniform and errors in it would
            # hardly show.
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 * 2)
    return model


def _difference(model: Any) -> float:
    """Return the largest difference between the layouts in the hidden states that predict responses."""
    body = model.base_model
    rows, row = padded(_PROMPTS, _CHOSEN, _REJECTED, pad_id=0), prefix_shared(_PROMPTS, _CHOSEN, _REJECTED)
    expected = body(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).last_hidden_state
    assert row.segments is not None
    with reading_rows("prefix_shared"):
        shared = body(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            use_cache=False,
            shared_attention=PrefixSharedAttention(row.segments),
        ).last_hidden_state
    # The padded layout is ordered by side, the prefix-shared one by pair.
    order = torch.argsort(row.sequences, stable=True)
    difference = expected.flatten(0, 1)[rows.predictors] - shared.flatten(0, 1)[row.predictors[order]]
    return float(difference.abs().max())
