"""A checked row."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_pref.data.checking.fields import Spans
from lit_pref.pairs import Text


@dataclass(frozen=True)
class TextPair:
    """A checked row: texts in their final order, margin >= 0.

    `swapped` says that the source called the worse text chosen, and that the two changed places; `disagrees` that the
    margin is not the difference of the scores beside it, that the probability or a label prefers the other text or
    only one of them is a tie, or that `p_chosen` is another number: then the margin wins, and `probability`.

    `extra_response` is a further response. `spans` hold, for each per-token column, (start, end, value) in characters
    of the chosen and of the rejected text. `sources` name who wrote the chosen and the rejected text. `chosen_first`
    says whether the chosen text came first in the source, None where the source itself tells chosen from rejected;
    `clipped` that the margin was cut to a bound.
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

    @property
    def prompt_id(self) -> str:
        """16 characters that name the prompt, the same in every file."""
        return hashlib.sha256(json.dumps(canonical(self.prompt), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def tie(self) -> bool:
        return self.margin == 0 or (self.margin is None and self.probability == 0.5)


def canonical(prompt: Any) -> Any:
    """A prompt by what is asked: roles and contents alone, and one message of a user as its text.

    Two ways to write one prompt would else be two prompts, one of them trained on and the other held out.

    >>> canonical([{"role": "user", "content": "2+2=", "id": 7}])
    '2+2='
    """
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        return prompt
    messages = [{"role": message.get("role"), "content": message.get("content")} for message in prompt]
    return messages[0]["content"] if [message["role"] for message in messages] == ["user"] else messages
