"""Sampled and greedy responses of a policy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    max_new_tokens: int,
    temperature: float | None = None,
    seed: int = 0,
    batch: int = 512,
) -> list[list[int]]:
    """The ids of one response per prompt, up to and including its end token; one that has none was cut.

    y ~ softmax(f / temperature) over the whole vocabulary: no top-k, top-p or penalty applies, whatever generation
    settings the model's folder carries. With `temperature` None the most likely token is taken. The draws depend on
    `seed`, `batch` and the order of the prompts only: the global random state is neither read nor changed.

    Args:
        model: a causal LM or a PeftModel; the training mode of every module is restored.
        prompts: texts, encoded after exactly one start token, or ids that are used as they are.
        max_new_tokens: most tokens of a response, end token included.
        temperature: > 0, or None.
        batch: prompts generated at once; on a CPU a tiny model is fastest with hundreds.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, or None for greedy decoding; got {temperature}")
    ids = [_encode(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, **sampling)
    device = next(model.parameters()).device
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own_config, modes = owner.generation_config, [(module, module.training) for module in model.modules()]
    model.eval()
    # generate() fills whatever `config` leaves open from the model's own settings, penalties included.
    owner.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            responses: list[list[int]] = []
            for start in range(0, len(ids), batch):
                input_ids, mask = _left_padded(ids[start : start + batch], pad, device)
                written = owner.generate(inputs=input_ids, attention_mask=mask, generation_config=config)
                responses += [_until_end(row, ends) for row in written[:, input_ids.shape[1] :].tolist()]
    finally:
        owner.generation_config = own_config
        for module, training in modes:
            module.training = training
    return responses


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = tokenizer.bos_token_id
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token first, then the further ones that the model's folder names (a turn's end).

    A model built from a bare config names its class's default id, which may be a word here: only special tokens count.
    """
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ends += [number for number in named if number in special and number not in ends]
    if not ends:
        raise ValueError("neither the tokenizer nor the model names an end token")
    return ends


def _left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (B, T) int64."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    for position, token in enumerate(row):
        if token in ends:
            return row[: position + 1]
    return row
