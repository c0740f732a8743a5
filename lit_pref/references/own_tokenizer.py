"""The text that the policy kept, tokenised again for a reference that has another tokenizer."""

import json
from dataclasses import replace
from typing import Any

import jinja2
import torch

from lit_pref.errors import UserError
from lit_pref.scoring.layout import padded
from lit_pref.types import KeptText, Message, PreferenceBatch, Text


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text and conversation the same ids."""
    return _state(one) == _state(other) and one.chat_template == other.chat_template


def retokenized(batch: PreferenceBatch, tokenizer: Any) -> PreferenceBatch:
    """`batch` in the ids of another tokenizer, made from `batch.texts` and in the same order of pairs.

    Raises:
        ValueError: for a batch without texts.
        UserError: where a conversation does not go through the tokenizer's chat template.
    """
    if batch.texts is None:
        raise ValueError("a reference with its own tokenizer reads `batch.texts`, and this batch has none")
    ids = [ids_of(text, tokenizer) for text in batch.texts]
    prompts, chosen, rejected = (list(part) for part in zip(*ids, strict=True))
    two_sided = batch.rejected_lengths is not None
    layout = padded(prompts, chosen, rejected if two_sided else None, tokenizer.pad_token_id)
    input_ids, mask, predictors, targets, sequences = (t.to(batch.input_ids.device) for t in layout)

    def lengths(responses: list[list[int]]) -> torch.Tensor:
        return torch.tensor([len(response) for response in responses], device=batch.input_ids.device)

    return replace(
        batch,
        input_ids=input_ids,
        attention_mask=mask,
        predictors=predictors,
        targets=targets,
        sequences=sequences,
        chosen_lengths=lengths(chosen),
        rejected_lengths=lengths(rejected) if two_sided else None,
    )


def ids_of(text: KeptText, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Ids of prompt, chosen and rejected response (empty for one-sided data).

    One begin token where the tokenizer has one, whether it writes it by itself or not. The boundary is the longest
    common prefix of prompt, prompt + chosen and prompt + rejected. A message list goes through the chat template, or is
    joined line by line where there is none. Only a complete response is ended: by the template, else by the tokenizer's
    end token.
    """
    chat = not isinstance(text.prompt, str) and tokenizer.chat_template is not None
    start = _template(tokenizer, text.prompt, True) if chat else _plain(text.prompt)
    sides = [(text.chosen, text.chosen_complete)]
    if text.rejected is not None:
        sides.append((text.rejected, text.rejected_complete))
    prompt = _encode(tokenizer, start)
    whole = [_with_response(tokenizer, text.prompt, start, r, chat, complete) for r, complete in sides]
    boundary = _common_prefix([prompt, *whole])
    responses = [ids[boundary:] for ids in whole]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    # Without any token before it, a response's first token could not be predicted: models without a begin token were
    # trained on documents that follow an end token.
    kept = [*begin, *prompt[:boundary]] or [tokenizer.eos_token_id]
    return kept, responses[0], responses[1] if len(responses) == 2 else []


def _with_response(tokenizer: Any, prompt: Text, start: str, response: str, chat: bool, complete: bool) -> list[int]:
    if not complete:
        return _encode(tokenizer, start + response)
    if not chat:
        return [*_encode(tokenizer, start + response), tokenizer.eos_token_id]
    assert not isinstance(prompt, str)
    # What templates write after the turn's end, a line break, is never generated.
    rendered = _template(tokenizer, [*prompt, {"role": "assistant", "content": response}], False).rstrip()
    ids = _encode(tokenizer, rendered)
    ended = not rendered.endswith(response.rstrip()) and ids[-1] in _added(tokenizer)
    return ids if ended else [*ids, tokenizer.eos_token_id]


def _template(tokenizer: Any, messages: Text, generation: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    except (jinja2.TemplateError, TypeError) as error:
        raise UserError(
            f"the chat template of the reference '{tokenizer.name_or_path}' refuses a conversation ({error}): "
            "leave this reference out, or drop such prompts"
        ) from error


def _plain(prompt: Text) -> str:
    if isinstance(prompt, str):
        return prompt
    messages: list[Message] = prompt
    return "".join(message["content"] + "\n" for message in messages)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Ids without a begin token, which a template may have written."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    while ids and ids[0] == tokenizer.bos_token_id:
        ids = ids[1:]
    return ids


def _added(tokenizer: Any) -> set[int]:
    return {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}


def _common_prefix(lists: list[list[int]]) -> int:
    shortest = min(map(len, lists))
    return next((k for k in range(shortest) if len({ids[k] for ids in lists}) > 1), shortest)


def _state(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer), tokenizer.get_vocab()
    state = json.loads(backend.to_str())
    # Left behind by whoever padded or truncated last.
    return {name: part for name, part in state.items() if name not in ("padding", "truncation")}
