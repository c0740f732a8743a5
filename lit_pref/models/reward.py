"""Reward models: a language model's body with a head that gives one number, or a preference embedding, per response."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lit_pref.errors import UsageError, UserError
from lit_pref.models.embedding_reader import GATE
from lit_pref.models.folder import model_folder
from lit_pref.models.loading import first_line, reading_weights, refuse_lost_quantization
from lit_pref.scoring.reward import EmbeddingScorer, RewardScorer

HEAD = "score"
"""The name of the head in transformers' sequence classifiers of decoder models."""
LANGUAGE_HEADS = ("lm_head.", "embed_out.", "output_layer.")
"""The beginnings of the names of a language model's head, which a reward model has no use for."""


@dataclass
class Embedding:
    """A preference embedding v(x, y) of 2k dimensions, as the head of a reward model (GPM).

    A pair of responses has the score s = sum_b lambda_b (v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b]), which changes sign
    when they are exchanged, and can represent preferences that are cyclic.

    **Source** GPM, arXiv 2410.02197, and general-preference/general-preference-model. Its training code leaves
    `normalise` off and its example code has it on; its code fails with the gate on.

    Args:
        dimensions: 2k, even.
        gate: lambda = softmax(W h_x) over the k blocks, h_x the hidden state at the prompt end; else lambda = 1.
        normalise: divide v by its norm, so that s is in [-1, 1] without a gate.
    """

    dimensions: int = 2
    gate: bool = False
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.dimensions < 2 or self.dimensions % 2:
            raise UsageError(f"embedding.dimensions is {self.dimensions}: it must be even and at least 2")


def load_reward_model(
    name: str, folder: Path, config: PretrainedConfig, outputs: int, dtype: torch.dtype, form: dict[str, Any]
) -> Any:
    """Load the model in `folder` as a sequence classifier; the head of a causal LM is replaced by a new one.

    Args:
        name: the user's name for it, for messages.
        folder: a folder with safetensors, of a causal LM or of a sequence classifier.
        config: the model's configuration, possibly changed.
        outputs: the number of outputs of the head.
        dtype: dtype of the weights; the head is always in fp32 or wider.
        form: further arguments for `from_pretrained`.

    Raises:
        UserError: it is neither, a weight other than the head is missing, or its head has another number of outputs.
    """
    given = _outputs(config)
    if given is not None and given != outputs:
        raise UserError(
            f"the head of '{name}' has {given} outputs and this run reads {outputs}: give a reward model with "
            f"{outputs}, or the language model that it was made from"
        )
    config.num_labels = outputs
    with reading_weights(name, "reward model"), _without_report():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **form
        )
    missing = [key for key in sorted(info["missing_keys"]) if given is not None or not key.startswith(f"{HEAD}.")]
    if missing:
        raise UserError(f"the weights of '{name}' lack {', '.join(missing[:3])}: it is not a complete model")
    lost = [key for key in sorted(info["unexpected_keys"]) if not key.startswith(LANGUAGE_HEADS)]
    if lost:
        raise UserError(
            f"the weights of '{name}' hold {', '.join(lost[:3])}, which a reward model with the head `{HEAD}` has no "
            "place for: give the language model that it was made from"
        )
    refuse_lost_quantization(f"'{name}'", config, model)
    if given is None:
        _draw_head(model, outputs)
    return _with_wide_head(model, name)


def draw_reward_model(config: PretrainedConfig, outputs: int, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """Build a reward model with random weights, drawn in fp32 and then rounded to `dtype`, except for the head."""
    config.num_labels = outputs
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, **form)
    except (ValueError, ImportError) as error:
        raise UserError(f"policy.config has no reward model in transformers: {first_line(error)}") from error
    refuse_lost_quantization("the model", config, model)
    _draw_head(model, outputs)
    model.config.dtype = dtype
    return _with_wide_head(model.to(dtype), config.model_type)


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
    """Give an exported reward model a padding token with which transformers finds the last token of a response.

    transformers reads the head at the last token that is not padding. So the padding token may not be one with which
    a response ends, as it is where a tokenizer without a padding token takes its eos token.

    Args:
        model: the model to be exported.
        tokenizer: its tokenizer; both get the same padding token.
        ends: ids with which responses may end.

    Raises:
        UserError: the tokenizer has no token for it.
    """
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    free = [token for token in special if token is not None and token not in ends]
    if not free:
        raise UserError(
            "the tokenizer has no special token other than those that end a response, so transformers could not tell "
            "padding from text: add a padding token to the tokenizer, and to the model's embeddings"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = free[0]


def reward_scorer(model: Any, embedding: Embedding | None, path: str | None = None) -> RewardScorer:
    """Return the scorer of a built reward model.

    Args:
        model: what `ModelSpec.build` returns for `head: scalar`.
        embedding: its preference embedding, if it has one.
        path: the folder or hub name that it was built from; the gate of an exported embedding is read from there.
    """
    head: Any = head_of(model)
    if embedding is None:
        return RewardScorer(model, head)
    width = model.config.get_text_config().hidden_size
    scorer = EmbeddingScorer(model, head, embedding.gate, embedding.normalise, width)
    if scorer.gate is not None and path is not None and (file := model_folder(path) / GATE).exists():
        scorer.gate.weight.data.copy_(load_file(file)["weight"])
    return scorer


def head_of(model: Any) -> nn.Module:
    """Return the head of a reward model.

    Raises:
        UserError: the model's class has none of the name that decoder models use.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = getattr(whole, HEAD, None)
    if head is None:
        raise UserError(f"{type(whole).__name__} has no head `{HEAD}`: give a decoder model, such as Llama or Qwen2")
    return head


@contextmanager
def _without_report() -> Iterator[None]:
    """Context without transformers' table of missing weights, which are checked here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _outputs(config: PretrainedConfig) -> int | None:
    """The number of outputs of the head that a folder holds; None for a language model."""
    classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    return len(config.id2label or ()) if classifier else None


def _draw_head(model: Any, outputs: int) -> None:
    """Draw the head's weights with standard deviation 1 / (H + 1), so that first rewards are near 0."""
    head: Any = head_of(model)
    nn.init.normal_(head.weight, std=1 / (head.in_features + 1))
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _with_wide_head(model: Any, name: str) -> Any:
    head = head_of(model)
    if not isinstance(head, nn.Linear):
        raise UserError(f"the head of '{name}' is a {type(head).__name__}, not one linear map: give a decoder model")
    if next(head.parameters()).dtype in (torch.bfloat16, torch.float16):
        head.float()
    # Without one, transformers' own forward reads the last token of a row, whatever it is; `set_padding` sets another.
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = None
    return model
