"""Responses of a causal LM to prompts, each drawn by its own random numbers, with their log-probs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lit_pref.errors import UserError
from lit_pref.models.generation import left_padded, plain_settings, until_end
from lit_pref.models.sampling import Sampling, TokenChoice

Finish = Literal["stop", "length", "stop_string"]
ENDLESS = 2**62
REPORTED = 8  # steps between two reports of progress
CONTEXT = 8  # tokens of a prompt that decide how the first characters of its response are decoded


@dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Args:
        prompt: its ids, bos included.
        key: 64 bits that determine its random numbers.
        most: the most tokens of the response, end token included.
    """

    prompt: list[int]
    key: int
    most: int


@dataclass(frozen=True)
class Response:
    """A response: its ids with the end token, and the text without it.

    `logprob` is the sum over `ids` of log softmax(f), at temperature 1 and over the whole vocabulary, in nats; `finish`
    says whether an end token, a stop string, or the length ended it. The text ends before a stop string.
    """

    ids: list[int]
    text: str
    logprob: float
    finish: Finish


def respond(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    sampling: Sampling,
    ends: Sequence[int],
    stop: Sequence[str] = (),
    on_step: Callable[[int], None] | None = None,
) -> list[Response]:
    """Generate one response to each request, all of them in one batch.

    Args:
        model: a causal LM or a PeftModel.
        tokenizer: its tokenizer, with a padding token.
        requests: prompts; similar lengths need the least padding.
        sampling: the distribution of the next token.
        ends: ids of the tokens that end a response.
        stop: texts that end a response.
        on_step: called every few steps with the number of new tokens.

    Raises:
        UserError: the model's logits are not finite.
    """
    device = next(model.parameters()).device
    input_ids, mask = left_padded([request.prompt for request in requests], tokenizer.pad_token_id, device)
    width = input_ids.shape[1]
    choice = TokenChoice(sampling, [request.key for request in requests])
    limits = Limits(width, torch.tensor([request.most for request in requests], device=device))
    strings = StopStrings(tokenizer, stop, width, len(requests))
    criteria: list[StoppingCriteria] = [limits, *([strings] if stop else [])]
    steps = Steps(width, ends, limits.most, on_step)
    criteria += [steps] if on_step is not None else []
    config = GenerationConfig(
        max_new_tokens=max(request.most for request in requests),
        eos_token_id=list(ends),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    with plain_settings(model) as owner:
        output = owner.generate(
            inputs=input_ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    logprobs = torch.stack(choice.logprobs, 1).double().cpu()
    written = output[:, width:].tolist()
    responses = [
        _response(tokenizer, request, row[: min(request.most, length)], row_logprobs, ends, stop)
        for request, row, row_logprobs, length in zip(requests, written, logprobs, strings.lengths, strict=True)
    ]
    if on_step is not None:
        on_step(sum(len(response.ids) for response in responses) - steps.reported)
    return responses


def _response(
    tokenizer: Any, request: Request, row: list[int], logprobs: Tensor, ends: Sequence[int], stop: Sequence[str]
) -> Response:
    ids = until_end(row, ends)
    logprob = float(logprobs[: len(ids)].sum())
    if not torch.isfinite(logprobs[: len(ids)]).all():
        raise UserError(
            "the model's logits are not finite, so that no token can be chosen: its weights are damaged, or its dtype "
            "is too narrow; give --dtype float32"
        )
    ended = bool(ids) and ids[-1] in ends
    text = text_after(tokenizer, request.prompt, ids[:-1] if ended else ids)
    cut, found = without_stop(text, stop)
    finish: Finish = "stop_string" if found else "stop" if ended else "length"
    return Response(ids, cut, logprob, finish)


def text_after(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    """Return the text of ids that follow a prompt, with the blank that some tokenizers drop at the start of a text."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    near = prompt[-CONTEXT:]
    before, whole = tokenizer.decode(near, **options), tokenizer.decode([*near, *ids], **options)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, **options)


def without_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there is one.

    >>> without_stop("4. Q: 3+3", ["Q:", "."])
    ('4', True)
    """
    starts = [start for string in stop if (start := text.find(string)) >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


class Limits(StoppingCriteria):
    """Ends each row at its own number of tokens."""

    def __init__(self, width: int, most: Tensor) -> None:
        self.width, self.most = width, most

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.most <= input_ids.shape[1] - self.width


class StopStrings(StoppingCriteria):
    """Ends each row whose last tokens contain a stop string; `lengths` has the tokens of each row up to there."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int, rows: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, width
        # A token has at least one byte; the one before may end in the first half of a character.
        self.window = max((len(string.encode()) for string in stop), default=0) + 1
        self.lengths = [ENDLESS] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        length = input_ids.shape[1] - self.width
        for k, tail in enumerate(input_ids[:, -min(self.window, length) :].tolist()):
            if length < self.lengths[k]:
                text = self.tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                if any(string in text for string in self.stop):
                    self.lengths[k] = length
        return torch.tensor([length >= end for end in self.lengths], device=input_ids.device)


class Steps(StoppingCriteria):
    """Ends nothing, and reports the new tokens of rows that have not reached an end token or their limit.

    It does so every few steps, because a GPU is waited for whenever a number is read from it.
    """

    def __init__(self, width: int, ends: Sequence[int], most: Tensor, report: Callable[[int], None] | None) -> None:
        self.width, self.most, self.report = width, most, report
        self.ends = torch.tensor(ends, device=most.device)
        self.open = torch.ones_like(most, dtype=torch.bool)
        self.tokens = torch.zeros_like(most)
        self.reported = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        last, length = input_ids[:, -1], input_ids.shape[1] - self.width
        self.tokens += self.open
        self.open &= ~torch.isin(last, self.ends) & (self.most > length)
        if length % REPORTED == 0 and self.report is not None:
            total = int(self.tokens.sum())
            self.report(total - self.reported)
            self.reported = total
        return torch.zeros_like(last, dtype=torch.bool)
