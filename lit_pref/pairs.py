"""A tokenized preference pair, the text it came from, and the strengths of a whole training set.

Letters used in every docstring and shape comment of the package: **B** pairs, **T** tokens of a row or response,
**N** response tokens of a batch, **V** vocabulary, **H** hidden size, **K** references.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

Message = dict[str, Any]
"""One message: texts in `role` and `content`, and what else the data give it, such as `tool_calls`.

The first message of a conversation may hold the arguments of the chat template, such as `tools`, under
`TEMPLATE_ARGUMENTS`.
"""
TEMPLATE_ARGUMENTS = "template_arguments"
Text = str | list[Message]
TokenValues = tuple[list[float], list[float] | None]
"""One number for each token of the chosen and of the rejected response."""
TokenFunction = Callable[[list[int], list[int], list[int] | None], TokenValues]
"""Maps the ids of prompt, chosen and rejected response to token values; pure, and known by its import path."""


@dataclass(frozen=True)
class TruncatedText:
    """The text of a pair after truncation by the policy's tokenizer; references with another tokenizer score it.

    `prompt` is a string or a message list; the responses are strings. `chosen_complete` is False if the response was
    truncated, so that no end token may be added. `further` holds, by side, what the message of a response has beyond
    its role and content.
    """

    prompt: Text
    chosen: str
    rejected: str | None
    chosen_complete: bool
    rejected_complete: bool
    extra_response: str | None = None
    extra_response_complete: bool = True
    further: dict[str, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class PreferencePair:
    """One tokenized pair.

    `prompt` has the ids up to the prompt end, `chosen` and `rejected` the ids after it (`rejected` is None for
    one-sided data). `margin` = score of chosen - score of rejected, in the units of the data; `probability` = P(chosen
    is better). `columns` has further numbers of the pair; `group` is the value by which metrics can be split.

    `extra_response` has the ids of a further response, for objectives that read one; its prompt is `extra_prompt`, or
    the same one if that is None.
    `token_columns` have one number for each id of `chosen` and of `rejected`. `prompt_id` identifies the prompt across
    files; `place` is the file and line that the pair came from.
    """

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    margin: float | None
    probability: float | None
    columns: Mapping[str, float]
    group: str | None
    text: TruncatedText
    extra_response: list[int] | None = None
    token_columns: Mapping[str, TokenValues] = field(default_factory=dict)
    prompt_id: str = ""
    place: str = ""
    extra_prompt: list[int] | None = None

    def with_extra_response(self, prompt: list[int], response: list[int]) -> "PreferencePair":
        """Return the pair with an extra response and its prompt that have ids and no text."""
        return replace(self, extra_response=response, extra_prompt=prompt)

    def of_extra_response(self) -> "PreferencePair":
        """Return a one-sided pair whose `chosen` is the extra response, under its prompt.

        Raises:
            ValueError: the pair has no extra response.
        """
        if self.extra_response is None:
            raise ValueError(f"{self.place or self.id} has no extra response")
        text = TruncatedText(
            self.text.prompt,
            self.text.extra_response or "",
            None,
            self.text.extra_response_complete,
            rejected_complete=True,
            further={"chosen": own} if (own := self.text.further.get("extra_response")) else {},
        )
        return replace(
            self,
            prompt=self.prompt if self.extra_prompt is None else self.extra_prompt,
            chosen=self.extra_response,
            rejected=None,
            extra_response=None,
            extra_prompt=None,
            margin=None,
            probability=None,
            columns={},
            token_columns={},
            text=text,
        )


ExtraFunction = Callable[[PreferencePair, frozenset[int]], tuple[list[int], list[int]]]
"""Maps a pair and the ids of special tokens to the ids of an extra response: of its prompt and of itself, together at
most as long as prompt and chosen response; pure, with a `repr` that says all that it depends on, and no lambda."""


@dataclass
class Strengths:
    """The strengths of all P training pairs, to which an objective is fitted before its first step.

    `probability` is NaN for a pair that has none; `columns` has the requested columns; `prompts` identifies the
    prompt of every pair, because pairs of one prompt are not independent; `responses`, if requested, identifies the
    chosen and the rejected response of every pair, to recognise texts that were compared more than once; `own_margin`
    is the margin before normalisation, for data that are normalised.
    """

    margin: NDArray[Any] | None  # (P,) float64
    probability: NDArray[Any] | None  # (P,) float64
    columns: dict[str, NDArray[Any]]  # name -> (P,) float64
    prompts: NDArray[Any]  # (P,) of str
    responses: NDArray[Any] | None = None  # (P, 2) of bytes
    own_margin: NDArray[Any] | None = None  # (P,) float64
