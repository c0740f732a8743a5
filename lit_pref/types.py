"""The nouns that travel the road: a pair becomes a batch, a batch becomes scores, scores become losses.

Letters used in every docstring and shape comment: **B** pairs, **T** tokens of a row, **N** response tokens of a batch,
**V** vocabulary, **H** hidden, **K** references.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_pref.errors import UserError

Message = dict[str, str]
Text = str | list[Message]
TokenValues = tuple[list[float], list[float] | None]
"""One number for each token of the chosen and of the rejected response."""
TokenFunction = Callable[[list[int], list[int], list[int] | None], TokenValues]
"""From the ids of prompt, chosen and rejected response to token values; pure, and known by its import path."""


@dataclass(frozen=True)
class KeptText:
    """The text of a pair as the policy kept it after truncation, for references that have another tokenizer.

    `prompt` is a string or a message list; the responses are strings. `chosen_complete` is False where the response was
    cut, so that no end token may be added.
    """

    prompt: Text
    chosen: str
    rejected: str | None
    chosen_complete: bool
    rejected_complete: bool
    third: str | None = None
    third_complete: bool = True


@dataclass(frozen=True)
class PreferencePair:
    """One tokenised pair.

    `prompt` holds the ids up to the boundary, `chosen` and `rejected` the ids after it (`rejected` is None for
    one-sided data). `margin` = score of chosen - score of rejected, in the units of the data; `probability` = P(chosen
    is better). `columns` are further numbers of the pair; `group` is the value by which metrics can be split.

    `third` are the ids of a further response to the same prompt, for objectives that compare with one. `token_columns`
    hold one number for each id of `chosen` and of `rejected`. `prompt_id` names the prompt over all files; `place` is
    the file and line that the pair came from.
    """

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    margin: float | None
    probability: float | None
    columns: Mapping[str, float]
    group: str | None
    text: KeptText
    third: list[int] | None = None
    token_columns: Mapping[str, TokenValues] = field(default_factory=dict)
    prompt_id: str = ""
    place: str = ""

    def of_third(self) -> "PreferencePair":
        """The prompt with the third response alone: a one-sided pair, whose `chosen` it is.

        Raises:
            ValueError: the pair has no third response.
        """
        if self.third is None:
            raise ValueError(f"{self.place or self.id} has no third response")
        text = KeptText(self.text.prompt, self.text.third or "", None, self.text.third_complete, True)
        return replace(
            self,
            chosen=self.third,
            rejected=None,
            third=None,
            margin=None,
            probability=None,
            columns={},
            token_columns={},
            text=text,
        )


@dataclass
class Strengths:
    """How strong the preferences of P training pairs are: what an objective is fitted to before its first step.

    `probability` is NaN where a pair has none; `columns` holds the columns that were asked for; `prompts` names the
    prompt of every pair, for pairs of one prompt are not independent; `responses`, where it was asked for, names the
    chosen and the rejected response of every pair after its prompt: two texts that were compared more than once;
    `own_margin` is the margin before it was normalised, where it was.
    """

    margin: NDArray[Any] | None  # (P,) float64
    probability: NDArray[Any] | None  # (P,) float64
    columns: dict[str, NDArray[Any]]  # name -> (P,) float64
    prompts: NDArray[Any]  # (P,) of str
    responses: NDArray[Any] | None = None  # (P, 2) of bytes
    own_margin: NDArray[Any] | None = None  # (P,) float64


@dataclass
class PreferenceBatch:
    """B pairs laid out for a model.

    The layout is data: hidden state `predictors[n]` (an index into the R x T positions, flattened) predicts the
    response token `targets[n]` of response `sequences[n]`, where response b < B is the chosen one of pair b and
    response B + b its rejected one. Nothing else of the layout is known to scores and objectives.

    Padded layout: a row a response, `[prompt | response]`, with `attention_mask`. Shared layout: one row without
    padding, `[prompt | chosen | rejected]` pair after pair, with `position_ids` that restart at the prompt's end for
    the rejected response, and `segments`, by which attention hides pairs from each other and chosen from rejected.

    `addresses` are the names of a pair's two responses in the reference store.

    `real` is False for a filler: a repeated pair that keeps ranks in step and counts nowhere. `window_pairs` is the
    number of real pairs in this batch's optimiser window, over all ranks and micro-batches.
    """

    pair_ids: list[str]
    input_ids: Tensor  # (R, T) int64
    attention_mask: Tensor | None  # (R, T) int64, None in the shared layout
    predictors: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64
    sequences: Tensor  # (N,) int64
    chosen_lengths: Tensor  # (B,) int64, tokens
    rejected_lengths: Tensor | None  # (B,) int64, tokens
    margin: Tensor | None  # (B,) fp32
    probability: Tensor | None  # (B,) fp32
    real: Tensor  # (B,) bool
    window_pairs: int
    columns: dict[str, Tensor] = field(default_factory=dict)  # name -> (B,) fp32
    groups: list[str] | None = None
    texts: list[KeptText] | None = None
    position_ids: Tensor | None = None  # (R, T) int64, None in the padded layout
    segments: tuple[tuple[int, int, int], ...] | None = None  # tokens of prompt, chosen, rejected of each pair
    addresses: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    token_columns: dict[str, Tensor] = field(default_factory=dict)  # name -> (N,) fp32, beside `targets`
    third: "PreferenceBatch | None" = None  # one-sided: the same prompts with a further response, its `chosen`
    places: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def num_sequences(self) -> int:
        """2B, or B for one-sided data."""
        return len(self) * (1 if self.rejected_lengths is None else 2)

    def to(self, device: torch.device | str) -> "PreferenceBatch":
        """The same batch with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | PreferenceBatch):
                return value.to(device)
            if isinstance(value, dict):
                return {name: move(entry) for name, entry in value.items()}
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    @property
    def names(self) -> list[str]:
        """What sentences call the pairs: the file and line of each, or its id."""
        return self.places or [f"pair {name}" for name in self.pair_ids]

    def by_response(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values beside `targets`, (N,), as one row a response: chosen (B, T) and rejected (B, T), zeros at the end.

        T is the length of the longest response of the side.
        """
        order = torch.argsort(self.sequences, stable=True)
        counts = torch.bincount(self.sequences, minlength=self.num_sequences)
        starts = counts.cumsum(0) - counts
        rows = self.sequences[order]
        places = torch.arange(len(order), device=order.device) - starts[rows]
        table = values.new_zeros(self.num_sequences, int(counts.max())).index_put((rows, places), values[order])
        b = len(self)
        chosen = table[:b, : int(self.chosen_lengths.max())]
        return chosen, None if self.rejected_lengths is None else table[b:, : int(self.rejected_lengths.max())]

    def token_column(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A token column in the shape of `TokenLogps`: chosen (B, T) and rejected (B, T), zero-padded.

        Raises:
            UserError: the batch does not have it.
        """
        if name not in self.token_columns:
            raise UserError(
                f"the objective reads the token column `{name}`, and this data has none (token columns: "
                f"{', '.join(sorted(self.token_columns)) or 'none'}): give `{name}_chosen` and `{name}_rejected` as "
                f"lists of [start, end, value], and name {name} in data.token_columns"
            )
        return self.by_response(self.token_columns[name])


@dataclass(frozen=True)
class TokenLogps:
    """Log-prob of every response token, nats; a zero-padded (B, T) tensor. Needs no reference."""


@dataclass(frozen=True)
class Tilt:
    """Sequence sums of log softmax((1 + epsilon) f - epsilon g)[y], f the policy's and g the reference's logits.

    (B,), nats.
    """

    epsilon: float


@dataclass(frozen=True)
class Kl:
    """Sequence sums of KL(policy || reference) of the next-token distributions; (B,), nats."""


@dataclass(frozen=True)
class Entropy:
    """Sequence sums of the next-token entropy `-Σ_v p_v log p_v`; (B,), nats. Needs no reference."""


@dataclass(frozen=True)
class SumSquares:
    """Sequence sums of `Σ_v p_v²`, the probability that two draws of the next token agree; (B,). Needs no reference."""


@dataclass(frozen=True)
class TopOne:
    """Number of response tokens that are the arg max of their distribution, ties included; (B,). Needs no reference."""


Need = TokenLogps | Tilt | Kl | Entropy | SumSquares | TopOne
COMPARING_NEEDS = (Tilt, Kl)
"""Needs that compare whole distributions and so want a live reference with the policy's vocabulary."""


@dataclass
class SequenceScores:
    """One response each: `scores` (B,) fp32 (policy: summed log-prob in nats), `lengths` (B,) in tokens.

    `statistics` holds the further values that were asked for, under the need itself.
    """

    scores: Tensor  # (B,)
    lengths: Tensor  # (B,)
    statistics: dict[Need, Tensor] = field(default_factory=dict)


@dataclass
class PairScores:
    """The scores of both responses; `rejected` is None for one-sided data, `third` where no third response is read."""

    chosen: SequenceScores
    rejected: SequenceScores | None
    third: SequenceScores | None = None


@dataclass
class ObjectiveOutput:
    """What an objective returns: unreduced `losses` (B,) with gradient, detached rewards (B,), and values to log.

    `logged` maps a metric name to a detached (B,) tensor. Names with a meaning elsewhere: `target` (the probability
    that the loss fits), `target_entropy` (nats), `beta`.
    """

    losses: Tensor  # (B,)
    chosen_rewards: Tensor  # (B,)
    rejected_rewards: Tensor | None  # (B,)
    logged: dict[str, Tensor] = field(default_factory=dict)
