"""A checked pair of texts, before tokenization."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lit_pref.data.checking.fields import Spans
from lit_pref.data.sources.row import Row
from lit_pref.pairs import Message, Text

FIRST_TURNS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\A\s*(?:Human|User):(.*?)(?=\n\s*(?:Human|User|Assistant):|\Z)",  # HH text
        r"<\|im_start\|>user\n(.*?)(?=<\|im_end\|>|\Z)",  # ChatML
        r"<\|start_header_id\|>user<\|end_header_id\|>(.*?)(?=<\|eot_id\|>|\Z)",  # Llama 3
        r"<start_of_turn>user\n(.*?)(?=<end_of_turn>|\Z)",  # Gemma
        r"\[INST\](?:\s*<<SYS>>.*?<</SYS>>)?(.*?)(?=\[/INST\]|\Z)",  # Llama 2 and Mistral
        r"<\|user\|>(.*?)(?=</s>|<\|end\|>|<\|endoftext\|>|<\|assistant\|>|\Z)",  # Zephyr, Phi, OLMo
    )
)
"""The first turn of a user in text that was written by a chat template."""
LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032`\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\u2033", '"'),
    }
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
)
"""Forms of quotes and dashes, with the form of the keyboard."""


@dataclass(frozen=True)
class TextPair:
    """A checked row: texts in their final order, margin >= 0.

    `swapped` means that the source called the worse text chosen, so the two were swapped. `disagrees` means that the
    margin is not the difference of the row's scores, that the probability or a label prefers the other text or only one
    of them is a tie, or that `p_chosen` differs from `probability`; the margin then wins, and `probability` wins over
    `p_chosen`.

    `extra_response` is a further response. `spans` has, for each per-token column, (start, end, value) in characters
    of the chosen and of the rejected text. `sources` names who wrote the chosen and the rejected text. `chosen_first`
    says whether the chosen text came first in the source, and is None if the source itself names a chosen text.
    `clipped` means that the margin was cut to a bound. `further` holds, by side, what the message of a response has
    beyond its role and content. `disagreement` says what contradicts what, and with which numbers.
    """

    prompt: Text
    chosen: str
    rejected: str | None
    margin: float | None
    probability: float | None
    columns: dict[str, float]
    group: str | None
    id: str | None
    swapped: bool
    disagrees: bool
    extra_response: str | None = None
    spans: Mapping[str, tuple[Spans, Spans]] = field(default_factory=dict)
    sources: tuple[str | None, str | None] = (None, None)
    chosen_first: bool | None = None
    clipped: bool = False
    further: Mapping[str, Message] = field(default_factory=dict)
    disagreement: tuple[str, str] | None = None

    @cached_property
    def prompt_id(self) -> str:
        """16 characters that identify the prompt across files."""
        return _digest(canonical_prompt(self.prompt))

    @cached_property
    def prompt_group(self) -> str:
        """16 characters that prompts share which are held out together."""
        return _digest(split_key(self.prompt))

    @property
    def tie(self) -> bool:
        """Whether both responses are equally good."""
        return self.margin == 0 or (self.margin is None and self.probability == 0.5)


@dataclass(frozen=True)
class CheckedPair:
    """A canonical row, its texts, its id, and its split, "train" or "validation"."""

    row: Row
    text: TextPair
    id: str
    split: str


def canonical_prompt(prompt: Any) -> Any:
    r"""Return a prompt reduced to roles and contents; a single message of a user becomes its text.

    Unicode is composed, runs of whitespace become one blank, and empty turns are left out: otherwise two notations of
    one prompt would be two prompts, and one of them could be held out of training.

    >>> canonical_prompt([{"role": "system", "content": ""}, {"role": "user", "content": "2+2=\r\n", "id": 7}])
    '2+2='
    """
    if isinstance(prompt, str):
        return _composed(prompt)
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        return prompt
    messages = [{"role": message.get("role"), "content": _composed(message.get("content"))} for message in prompt]
    messages = [message for message in messages if message["content"] not in (None, "")]
    return messages[0]["content"] if [message["role"] for message in messages] == ["user"] else messages


def split_key(prompt: Any) -> Any:
    r"""Return what decides the split of a prompt, its first text of a user: dialogues stay with their beginning.

    Forms of one text have one key: Unicode forms, invisible characters, quotes and dashes, capital letters, and the
    text that a chat template writes.

    >>> split_key([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    'hi'
    >>> split_key("\ufeffHi ")
    'hi'
    >>> split_key("\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:")
    'hi'
    >>> split_key("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    'hi'
    """
    if isinstance(prompt, str):
        text = prompt.replace("\r\n", "\n")
        found = next(filter(None, (pattern.search(text) for pattern in FIRST_TURNS)), None)
        return folded(found[1] if found else text)
    canonical = canonical_prompt(prompt)
    if not isinstance(canonical, list) or not all(isinstance(message, dict) for message in canonical):
        return folded(canonical)
    first = next((message["content"] for message in canonical if message["role"] == "user"), None)
    return canonical if first is None else folded(first)


def pair_key(prompt: Text, chosen: str, rejected: str | None) -> str:
    """Return 16 characters that forms of one pair share, in both orders of its responses."""
    turns = [folded(turn["content"]) for turn in prompt] if isinstance(prompt, list) else [split_key(prompt)]
    return _digest([turns, sorted(folded(text) for text in (chosen, rejected or ""))])


def folded(text: Any) -> Any:
    """Return a text without what makes two forms of one text differ; any other value unchanged.

    A text that holds nothing else, such as one zero-width space, is only composed.
    """
    if not isinstance(text, str):
        return text
    visible = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")
    return " ".join(visible.translate(LOOKALIKES).casefold().split()) or _composed(text)


def _composed(text: Any) -> Any:
    """Return a text in composed Unicode with single blanks; any other value unchanged."""
    return " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else text


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
