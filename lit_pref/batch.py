"""A batch of pairs: the data that objectives and metrics read, and the rows that a model reads.

Letters: **B** pairs, **R** rows, **T** tokens of a row or response, **N** response tokens (see `lit_pref.pairs`).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_pref.device_data import DeviceData, without_waiting
from lit_pref.errors import UserError
from lit_pref.pairs import TruncatedText
from lit_pref.scores import PairScores

TokenTable = tuple[Tensor, Tensor | None]
"""Values of the response tokens, zero-padded: chosen (B, T) and rejected (B, T); None for one-sided data."""


@dataclass
class PairData(DeviceData):
    """B pairs without their token ids, for objectives and metrics.

    `is_real` is False for a filler: a repeated pair that gives every rank the same number of batches and is counted
    nowhere. `window_pairs` is the number of real pairs in the optimizer step of this batch, over all ranks and
    micro-batches; of data of lists, it is the number of real lists.

    In data of lists, every record is one response, `chosen`, and `lists` says which records form one list. Lists are
    always whole.

    `response_keys` identify a pair's two responses in the reference store; `texts` serve references with another
    tokenizer.

    >>> PairData(["a", "b"], chosen_lengths=torch.tensor([3, 4]), rejected_lengths=torch.tensor([2, 5])).window_pairs
    2
    """

    ids: list[str]
    chosen_lengths: Tensor  # (B,) int64, tokens
    rejected_lengths: Tensor | None  # (B,) int64, tokens
    margin: Tensor | None = None  # (B,) fp32
    probability: Tensor | None = None  # (B,) fp32
    is_real: Tensor = None  # type: ignore[assignment]  # (B,) bool; all True by default
    window_pairs: int = -1  # B by default, or the number of lists
    columns: dict[str, Tensor] = field(default_factory=dict)  # name -> (B,) fp32
    token_columns: dict[str, TokenTable] = field(default_factory=dict)  # fp32
    groups: list[str] | None = None
    places: list[str] = field(default_factory=list)
    texts: list[TruncatedText] | None = None
    response_keys: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    lists: Tensor | None = None  # (B,) int64, the number of each record's list in this batch; None for pairs

    def __post_init__(self) -> None:
        if self.is_real is None:
            self.is_real = torch.ones(len(self.ids), dtype=torch.bool)
        if self.window_pairs < 0:
            self.window_pairs = round(float(self.weights.sum()))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weights(self) -> Tensor:
        """The weight of each record in the loss, (B,): 1 for a pair, 1/K in a list of K responses, 0 for a filler.

        The weights of an optimizer step add up to `window_pairs`: a list counts once, however long it is.
        """
        if self.lists is None:
            return self.is_real.float()
        return self.is_real / (self.lists[:, None] == self.lists).sum(1)

    @property
    def real(self) -> Tensor:
        """The indices of the real pairs, int64; their number is known without a wait for the device."""
        return without_waiting(self.host.is_real.nonzero().squeeze(1), self.is_real.device)

    @property
    def names(self) -> list[str]:
        """The name of each pair in messages: its file and line, or its id."""
        return self.places or [f"pair {name}" for name in self.ids]

    def token_column(self, name: str) -> TokenTable:
        """Return a token column, in the shape of `TokenLogps`.

        Raises:
            UserError: the batch does not have it.
        """
        if name not in self.token_columns:
            raise UserError(
                f"the objective reads the token column `{name}`, which these data do not have (token columns: "
                f"{', '.join(sorted(self.token_columns)) or 'none'}): give `{name}_chosen` and `{name}_rejected` as "
                f"lists of [start, end, value], and name {name} in data.token_columns"
            )
        return self.token_columns[name]


@dataclass
class Rows(DeviceData):
    """B pairs laid out as R rows of T tokens for a model. All tensors are int64.

    Hidden state `predictors[n]` (an index into the R x T positions, flattened) predicts the response token `targets[n]`
    of response `sequences[n]`; response b < B is the chosen one of pair b, and response B + b its rejected one.
    `ends[s]` is the position of the last token of response s, at which a scalar head is read.

    Padded layout: one row per response, `[prompt | response]`, with `attention_mask`. Prefix-shared layout: one row
    without padding, `[prompt | chosen | rejected]` pair after pair, with `position_ids` that restart at the prompt end
    for the rejected response, and `segments`, by which attention separates pairs and the responses of a pair.
    """

    input_ids: Tensor  # (R, T)
    attention_mask: Tensor | None  # (R, T), None in the prefix-shared layout
    predictors: Tensor  # (N,)
    targets: Tensor  # (N,)
    sequences: Tensor  # (N,)
    ends: Tensor  # (2B,), or (B,) for one-sided data
    position_ids: Tensor | None = None  # (R, T), None in the padded layout
    segments: tuple[tuple[int, int, int], ...] | None = None  # tokens of prompt, chosen, rejected of each pair

    @property
    def num_sequences(self) -> int:
        """The number of responses: 2B, or B for one-sided data."""
        return len(self.ends)

    @property
    def response_lengths(self) -> Tensor:
        """The number of tokens of each response, (2B,), or (B,) for one-sided data."""
        # `bincount` would be a wait for the device, because the size of its result depends on the numbers.
        return torch.zeros_like(self.ends).index_add_(0, self.sequences, torch.ones_like(self.sequences))

    def by_response(self, values: Tensor, pairs: int) -> TokenTable:
        """Return values of the response tokens, (N,), as one zero-padded row per response.

        Args:
            values: one value for each of `targets`.
            pairs: B, the number of pairs.
        """
        order = torch.argsort(self.sequences, stable=True)
        counts = self.response_lengths
        starts = counts.cumsum(0) - counts
        responses = self.sequences[order]
        positions = torch.arange(len(order), device=order.device) - starts[responses]
        lengths = self.host.response_lengths.tolist()
        chosen, rejected = max(lengths[:pairs]), max(lengths[pairs:], default=0)
        table = values.new_zeros(self.num_sequences, max(chosen, rejected))
        table = table.index_put((responses, positions), values[order])
        return table[:pairs, :chosen], None if self.num_sequences == pairs else table[pairs:, :rejected]


@dataclass
class PreferenceBatch(DeviceData):
    """B pairs as data and as rows; in `extra_response` the prompts are the same and `chosen` is a further response.

    `stored` are scores of stored references that were looked up where the batch was built, by `Stored.key`.
    """

    pairs: PairData
    rows: Rows
    extra_response: "PreferenceBatch | None" = None
    stored: dict[str, PairScores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)
