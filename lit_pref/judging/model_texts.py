"""The texts that a model as judge reads, two responses at a time, and the errors of those that it cannot read."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.tokenization import TokenizedPair
from lit_pref.errors import UserError
from lit_pref.pairs import PreferencePair, Text


@contextmanager
def in_words_of_judges() -> Iterator[None]:
    """Context in which errors about a text do not name options of a run."""
    try:
        yield
    except UserError as error:
        said = re.sub(r" \((?:model\.policy\.tokenizer|data\.mapping)[^)]*\)", "", str(error))
        raise UserError(said.replace("data.max_length", "--max_length")) from error


def refusal(bad: BadRow, first: str, second: str) -> UserError:
    """Return the error of a text that cannot be scored, in the words of judges, which have no pairs in their data."""
    fault = bad.fault.replace("raise data.max_length, or set data.max_prompt_length", "raise --max_length")
    fault = fault.replace("data.max_length", "--max_length").partition(" to cut prompts from the left")[0]
    if bad.field == "chosen" and fault.startswith("and rejected "):
        there = "" if second == first else f" and {second}"
        return UserError(f"{first}{there}: two responses {fault.removeprefix('and rejected ')}")
    where, text = (second, "response") if bad.field == "rejected" else (first, "response")
    text = "prompt" if bad.field == "prompt" else text
    return UserError(f"{where}: the {text} {fault}, or leave the row out of the file")


def text_pair(question: tuple[Text, Sequence[Text]], i: int, j: int) -> TextPair:
    """Return two responses to a prompt as a pair; one response alone where both are the same."""
    prompt, responses = question
    texts: list[Any] = []
    further = {}
    for side, text in (("chosen", responses[i]), ("rejected", None if i == j else responses[j])):
        if isinstance(text, list):
            message = text[-1]
            further[side] = {name: value for name, value in message.items() if name not in ("role", "content")}
            text = str(message["content"])
        texts.append(text)
    return TextPair(
        prompt, texts[0] or "", texts[1], None, None, {}, None, None, swapped=False, disagrees=False,
        further={side: own for side, own in further.items() if own},
    )  # fmt: skip


def bare_pair(pair: TokenizedPair) -> PreferencePair:
    """Return the tokens of a pair without strength."""
    return PreferencePair("", pair.prompt, pair.chosen, pair.rejected, None, None, {}, None, pair.text)


def lengths_of(pairs: Sequence[PreferencePair]) -> NDArray[Any]:
    """(pairs, 3), tokens of prompt, first and second response."""
    return np.array([(len(p.prompt), len(p.chosen), len(p.rejected or ())) for p in pairs]).reshape(-1, 3)
