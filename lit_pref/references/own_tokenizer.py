"""Tokenizes the truncated text again, for a reference with its own tokenizer."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.encoding import TEMPLATE_ERRORS, Encoding, Unreadable, common_prefix_length, tokenizer_state
from lit_pref.pairs import Message, Text, TruncatedText
from lit_pref.scoring.layout import Layout, padded, prefix_shared, tokens_of_pairs


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text and conversation the same ids."""
    return bool(tokenizer_state(one) == tokenizer_state(other)) and one.chat_template == other.chat_template


def retokenized(batch: PreferenceBatch, tokenizer: Any, layout: Layout = "padded") -> PreferenceBatch:
    """Return `batch` in the ids of another tokenizer, from `batch.pairs.texts` and in the same order of pairs.

    Token columns are left out, because their values belong to the policy's tokens.

    Raises:
        ValueError: the batch has no texts.
        UserError: the tokenizer's chat template refuses a conversation.
    """
    if batch.pairs.texts is None:
        raise ValueError("a reference with its own tokenizer needs `batch.pairs.texts`, which this batch does not have")
    encoding = _encoding(tokenizer)
    ids = [ids_of(text, encoding) for text in batch.pairs.texts]
    prompts, chosen, rejected = (list(part) for part in zip(*ids, strict=True))
    two_sided = batch.pairs.rejected_lengths is not None
    answers = (chosen, rejected if two_sided else None)
    rows = (
        prefix_shared(prompts, *answers)
        if layout == "prefix_shared"
        else padded(prompts, *answers, tokenizer.pad_token_id)
    )

    def lengths(responses: list[list[int]]) -> torch.Tensor:
        return torch.tensor([len(response) for response in responses])

    pairs = replace(
        batch.pairs.host,
        chosen_lengths=lengths(chosen),
        rejected_lengths=lengths(rejected) if two_sided else None,
        response_keys=[],
        token_columns={},
    )
    extra = None if batch.extra_response is None else retokenized(batch.extra_response, tokenizer, layout)
    return PreferenceBatch(pairs, rows, extra).to(batch.rows.input_ids.device)


def ids_of(text: TruncatedText, encoding: Encoding) -> tuple[list[int], list[int], list[int]]:
    """Return the ids of prompt, chosen and rejected response (empty for one-sided data).

    The prompt starts with exactly one bos token if the tokenizer has one. It ends at the longest common prefix of
    prompt, prompt + chosen and prompt + rejected. A message list is rendered by the chat template, or joined line by
    line if there is none. Only a complete response gets an end token: that of the template, or else eos.

    The names of this tokenizer's special tokens are encoded as plain text, because the data were not written for it.

    Raises:
        UserError: the chat template refuses a conversation, or the tokenizer cannot read a text.
    """
    tokenizer = encoding.tokenizer
    sides = [(text.chosen, text.chosen_complete)]
    if text.rejected is not None:
        sides.append((text.rejected, text.rejected_complete))
    messages = [*([] if isinstance(text.prompt, str) else text.prompt), *text.further.values()]
    if lost := sorted({key for message in messages for key in message} - {"role", "content"}):
        raise UserError(
            f"messages have `{lost[0]}`, which the reference '{tokenizer.name_or_path}' with a tokenizer of its own "
            f"cannot be given: leave this reference out, or name it in data.ignore_columns: [{lost[0]}]"
        )
    write = _plain if isinstance(text.prompt, str) or tokenizer.chat_template is None else _chat
    try:
        prompts, whole = write(encoding, text.prompt, sides)
    except Unreadable as error:
        raise UserError(
            f"the tokenizer of the reference '{tokenizer.name_or_path}' cannot read a text ({error}): leave this "
            "reference out, or drop such pairs"
        ) from error
    start = common_prefix_length([*prompts, *whole])
    responses = [ids[start:] for ids in whole]
    # An empty prompt needs one token from which to predict the response's first token: models without a bos token were
    # trained on documents that follow an eos token.
    kept = [*encoding.bos, *prompts[0][:start]] or [tokenizer.eos_token_id]
    return kept, responses[0], responses[1] if len(responses) == 2 else []


def refuse_too_long(batch: PreferenceBatch, label: str, limit: int | None) -> None:
    """Refuse a batch with a row that a reference cannot read.

    Args:
        batch: pairs in the reference's own tokens.
        label: the name of the reference.
        limit: the most tokens that it reads; None for no limit.

    Raises:
        UserError: there is one.
    """
    lengths = tokens_of_pairs(batch)
    if limit is not None and max(lengths) > limit:
        raise UserError(
            f"{batch.pairs.names[lengths.index(max(lengths))]} has {max(lengths)} tokens for the reference "
            f"'{label}', which reads at most {limit}: lower data.max_length"
        )
    if batch.extra_response is not None:
        refuse_too_long(batch.extra_response, label, limit)


@lru_cache(maxsize=8)
def _encoding(tokenizer: Any) -> Encoding:
    return Encoding(tokenizer)


Ids = list[list[int]]


def _plain(encoding: Encoding, prompt: Text, sides: list[tuple[str, bool]]) -> tuple[Ids, Ids]:
    """Return the ids of the prompt, and of the prompt with each response."""
    start = prompt if isinstance(prompt, str) else "".join(message["content"] + "\n" for message in prompt)
    whole = [encoding.ids(encoding.encodable(start + response)) for response, _ in sides]
    ended = [[*ids, encoding.eos] if complete else ids for ids, (_, complete) in zip(whole, sides, strict=True)]
    return [encoding.ids(encoding.encodable(start))], ended


def _chat(encoding: Encoding, prompt: Any, sides: list[tuple[str, bool]]) -> tuple[Ids, Ids]:
    """Return the ids of the prompt, once or as rendered for each response, and of the prompt with each response."""
    messages: list[Message] = prompt
    prompts, whole = [], []
    try:
        for response, complete in sides:
            answer = encoding.chat.render_answer(messages, response)
            start = (
                encoding.chat.render_prompt(messages)
                if answer.prompt_end is None
                else answer.whole.upto(answer.prompt_end)
            )
            prompts.append(encoding.ids(start))
            if complete:
                ids = encoding.ids(answer.whole)
                whole.append(encoding.with_end(ids, answer.whole.text, response, answer.span))
            elif answer.span is None:
                whole.append(encoding.ids(encoding.extended(start, response)))
            else:
                before = answer.whole.upto(answer.span[0])
                whole.append(encoding.ids(encoding.extended(before, response.lstrip())))
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"the chat template of the reference '{encoding.tokenizer.name_or_path}' refuses a conversation ({error}): "
            "leave this reference out, or drop such prompts"
        ) from error
    return prompts, whole
