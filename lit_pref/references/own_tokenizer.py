"""The text that the policy kept, tokenised again for a reference that has another tokenizer."""

from dataclasses import replace
from typing import Any

import torch

from lit_pref.errors import UserError
from lit_pref.models.encoding import TEMPLATE_ERRORS, Encoding, boundary, tokenizer_state
from lit_pref.scoring.layout import Layout, padded, shared
from lit_pref.types import KeptText, Message, PreferenceBatch, Text


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text and conversation the same ids."""
    return bool(tokenizer_state(one) == tokenizer_state(other)) and one.chat_template == other.chat_template


def retokenized(batch: PreferenceBatch, tokenizer: Any, layout: Layout = "padded") -> PreferenceBatch:
    """`batch` in the ids of another tokenizer, made from `batch.texts` and in the same order of pairs.

    Raises:
        ValueError: for a batch without texts.
        UserError: where a conversation does not go through the tokenizer's chat template, or names one of its special
            tokens.
    """
    if batch.texts is None:
        raise ValueError("a reference with its own tokenizer reads `batch.texts`, and this batch has none")
    encoding = Encoding(tokenizer)
    ids = [ids_of(text, encoding) for text in batch.texts]
    prompts, chosen, rejected = (list(part) for part in zip(*ids, strict=True))
    two_sided = batch.rejected_lengths is not None
    answers = (chosen, rejected if two_sided else None)
    rows = shared(prompts, *answers) if layout == "shared" else padded(prompts, *answers, tokenizer.pad_token_id)

    def lengths(responses: list[list[int]]) -> torch.Tensor:
        return torch.tensor([len(response) for response in responses])

    return replace(
        batch,
        **rows._asdict(),
        chosen_lengths=lengths(chosen),
        rejected_lengths=lengths(rejected) if two_sided else None,
        addresses=[],
    ).to(batch.input_ids.device)


def ids_of(text: KeptText, encoding: Encoding) -> tuple[list[int], list[int], list[int]]:
    """Ids of prompt, chosen and rejected response (empty for one-sided data).

    One begin token where the tokenizer has one, whether it writes it by itself or not. The boundary is the longest
    common prefix of prompt, prompt + chosen and prompt + rejected. A message list goes through the chat template, or is
    joined line by line where there is none. Only a complete response is ended: by the template, else by the tokenizer's
    end token.

    The names of this tokenizer's special tokens are ordinary text to whoever wrote the data, and are read as such. In
    what a chat template wrote, the text's own cannot be told from the template's: such a conversation is refused.

    Raises:
        UserError: a conversation that the chat template refuses, or that names a special token.
    """
    tokenizer = encoding.tokenizer
    sides = [(text.chosen, text.chosen_complete)]
    if text.rejected is not None:
        sides.append((text.rejected, text.rejected_complete))
    if isinstance(text.prompt, str) or tokenizer.chat_template is None:
        prompt, *whole = _plain(encoding, text.prompt, sides)
    else:
        prompt, *whole = _chat(encoding, text.prompt, sides)
    start = boundary([prompt, *whole])
    responses = [ids[start:] for ids in whole]
    # Without any token before it, a response's first token could not be predicted: models without a begin token were
    # trained on documents that follow an end token.
    kept = [*encoding.begin, *prompt[:start]] or [tokenizer.eos_token_id]
    return kept, responses[0], responses[1] if len(responses) == 2 else []


def _plain(encoding: Encoding, prompt: Text, sides: list[tuple[str, bool]]) -> list[list[int]]:
    start = prompt if isinstance(prompt, str) else "".join(message["content"] + "\n" for message in prompt)
    ids = [encoding.ids(start, plain=True)]
    for response, complete in sides:
        whole = encoding.ids(start + response, plain=True)
        ids.append([*whole, encoding.tokenizer.eos_token_id] if complete else whole)
    return ids


def _chat(encoding: Encoding, prompt: list[Message], sides: list[tuple[str, bool]]) -> list[list[int]]:
    name = encoding.tokenizer.name_or_path
    for content in [*(message["content"] for message in prompt), *(response for response, _ in sides)]:
        if found := encoding.special(content):
            raise UserError(
                f"a conversation holds {found!r}, a special token of the reference '{name}': take it out of the text, "
                "or leave this reference out"
            )
    try:
        start = encoding.asked(prompt)
        ids = [encoding.ids(start)]
        for response, complete in sides:
            whole = encoding.answered(prompt, response) if complete else start + response
            own = encoding.ids(whole)
            ids.append(encoding.ended(own, whole, response) if complete else own)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"the chat template of the reference '{name}' refuses a conversation ({error}): "
            "leave this reference out, or drop such prompts"
        ) from error
    return ids
