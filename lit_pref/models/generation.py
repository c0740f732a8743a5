"""Generation of responses, sampled or greedy."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lit_pref.pairs import PreferencePair
from lit_pref.scoring.scorer import evaluating


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    max_new_tokens: int,
    temperature: float | None = None,
    seed: int = 0,
    batch: int = 512,
) -> list[list[int]]:
    """Generate one response per prompt: its ids, including the end token unless the response was truncated.

    y ~ softmax(f / temperature) over the whole vocabulary: no top-k, top-p or penalty applies, whatever the model's
    generation settings say. With `temperature` None the most likely token is taken. The samples depend only on `seed`,
    `batch` and the order of the prompts: the global random state is neither read nor changed.

    Args:
        model: a causal LM or a PeftModel; the training mode of every module is restored.
        tokenizer: the model's tokenizer, with a padding token (`ModelSpec.load_tokenizer`).
        prompts: texts, encoded with exactly one bos token, or ids, used as they are.
        max_new_tokens: maximum length of a response, end token included.
        temperature: > 0, or None for greedy decoding.
        seed: seed of the samples.
        batch: prompts per batch; on a CPU a tiny model is fastest with hundreds.

    Raises:
        ValueError: the temperature is not positive, or there is no end token.
    """
    ids = [_encode(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    ends = end_ids(model, tokenizer)
    if not ends:
        raise ValueError("neither the tokenizer nor the model has an end token")
    pad = tokenizer.pad_token_id
    sampling = _sampling(temperature)
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, **sampling)
    device = next(model.parameters()).device
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with plain_settings(model) as owner, forked:
        torch.manual_seed(seed)
        responses: list[list[int]] = []
        for start in range(0, len(ids), batch):
            input_ids, mask = left_padded(ids[start : start + batch], pad, device)
            output = owner.generate(inputs=input_ids, attention_mask=mask, generation_config=config)
            responses += [until_end(row, ends) for row in output[:, input_ids.shape[1] :].tolist()]
    return responses


@contextmanager
def plain_settings(model: Any) -> Iterator[Any]:
    """Context that yields the causal LM for `generate`, in eval mode, without gradients and its own settings.

    For settings that a call does not name, transformers uses the model's own, including penalties.
    """
    owner = _owner(model)
    saved, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        with evaluating(model), torch.no_grad():
            yield owner
    finally:
        owner.generation_config = saved


def stops(model: Any) -> list[int]:
    """Return the ids at which the model's generation settings stop."""
    named = getattr(getattr(_owner(model), "generation_config", None), "eos_token_id", None)
    return list(named) if isinstance(named, list | tuple) else [] if named is None else [named]


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids at which responses end, here and in an exported folder: eos, then those of the model's settings.

    Only added tokens count: a model built from a bare config has its class's default id, which may be a word here.
    """
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*eos, *(number for number in stops(model) if number in added)]))


def also_stop_at(model: Any, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> Any:
    """Make the model's generation settings stop at `end_ids` and at further ids, and return the model."""
    every = list(dict.fromkeys([*end_ids(model, tokenizer), *ends]))
    if every and getattr(_owner(model), "generation_config", None) is not None:
        _owner(model).generation_config.eos_token_id = every if len(every) > 1 else every[0]
    return model


def end_tokens(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, most: int = 1000) -> list[int]:
    """Return the added tokens that complete responses of up to `most` pairs end with, the most frequent first.

    They are what training makes a model end its turns with: eos, or the chat template's end of a turn.
    """
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    found = Counter[int]()
    for k in range(0, len(pairs), max(1, len(pairs) // most)):
        pair = pairs[k]
        sides = (pair.chosen, pair.text.chosen_complete), (pair.rejected, pair.text.rejected_complete)
        found.update(ids[-1] for ids, complete in sides if ids and complete and ids[-1] in added)
    return [number for number, _ in found.most_common()]


def _owner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _sampling(temperature: float | None) -> dict[str, Any]:
    """Return the settings of sampling from the whole vocabulary, or of greedy decoding."""
    if temperature is None:
        return {"do_sample": False}
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, or None for greedy decoding; got {temperature}")
    return {"do_sample": True, "temperature": temperature, "top_k": 0}


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both (B, T) int64."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """Return the ids up to the first end token, or all of them."""
    for position, token in enumerate(row):
        if token in ends:
            return row[: position + 1]
    return row
