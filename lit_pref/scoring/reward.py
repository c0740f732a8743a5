"""Scores of the responses of a batch by a reward model: the output of its head at the last token of a response."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pref.batch import PreferenceBatch, Rows
from lit_pref.scores import Need, PairScores, SequenceScores, TokenRewards
from lit_pref.scoring.scorer import reading


class RewardScorer(nn.Module):
    """The module that strategies wrap or shard; it contains a reward model, and its forward scores a batch.

    The score of a response is the head's output at its last token, in fp32 (fp64 for an fp64 model), also under
    autocast. The position comes from the batch (`Rows.ends`), never from a padding token.

    Args:
        model: a Hugging Face sequence classifier of one output, or a PeftModel of one.
        head: its head, which is a sub-module of `model`.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.__dict__["head"] = head  # not registered a second time: its parameters belong to the model

    def forward(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        hidden = hidden_states(self.model, batch)
        values = self.outputs(hidden.index_select(0, batch.rows.ends)).squeeze(-1)  # (2B,)
        tokens = None
        if TokenRewards() in needs:
            every = self.outputs(hidden.index_select(0, response_positions(batch.rows))).squeeze(-1)  # (N,)
            tokens = batch.rows.by_response(every, len(batch))
        return pair_scores(batch, values, tokens)

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return the head's outputs for hidden states (n, H), in fp32 or wider."""
        weight, bias = self.parameters_of_head()
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    def parameters_of_head(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the head; under LoRA, those of the trained copy."""
        head: Any = self.__dict__["head"]
        if hasattr(head, "modules_to_save"):
            head = head.modules_to_save[head.active_adapters[0]]
        return head.weight, head.bias


class EmbeddingScorer(RewardScorer):
    """A reward model with a preference embedding: s = sum_b lambda_b (v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b]).

    s is a score of the pair, so that the chosen response has s / 2 and the rejected one -s / 2: objectives and metrics
    read their difference.

    **Source** GPM, arXiv 2410.02197; see `lit_pref.models.reward.Embedding`.

    Args:
        model: a Hugging Face sequence classifier of 2k outputs, or a PeftModel of one.
        head: its head, which is a sub-module of `model`.
        gated: weigh the k blocks by a gate that reads the prompt's last hidden state.
        normalise: divide each embedding by its norm.
        width: H, the size of the hidden states.
    """

    def __init__(self, model: nn.Module, head: nn.Module, gated: bool, normalise: bool, width: int) -> None:
        super().__init__(model, head)
        self.normalise = normalise
        blocks = self.parameters_of_head()[0].shape[0] // 2
        self.gate = nn.Linear(width, blocks, bias=False, dtype=torch.float32) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)  # equal weights at first

    def forward(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        rows, size = batch.rows, len(batch)
        if batch.pairs.rejected_lengths is None:
            raise ValueError("a preference embedding scores pairs, and these data have only one response each")
        hidden = hidden_states(self.model, batch)
        embedded = self.outputs(hidden.index_select(0, rows.ends))  # (2B, 2k)
        if self.normalise:
            embedded = F.normalize(embedded, dim=-1)
        weights = None
        if self.gate is not None:
            first = torch.full_like(rows.ends, len(rows.sequences)).scatter_reduce(
                0, rows.sequences, torch.arange(len(rows.sequences), device=rows.ends.device), "amin"
            )
            prompts = hidden.index_select(0, rows.predictors[first[:size]])  # (B, H)
            with torch.autocast(hidden.device.type, enabled=False):
                weights = F.linear(prompts.to(embedded.dtype), self.gate.weight.to(embedded.dtype)).softmax(-1)
        half = skew_symmetric(embedded[:size], embedded[size:], weights) / 2
        return pair_scores(batch, torch.cat([half, -half]))


def skew_symmetric(chosen: Tensor, rejected: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return s = sum_b lambda_b (v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b]) of embeddings (B, 2k), lambda (B, k) or 1.

    >>> skew_symmetric(torch.tensor([[0.6, 0.8, 0.1, -0.2]]), torch.tensor([[0.8, -0.6, 0.0, 0.3]]))
    tensor([-0.9700])
    """
    blocks = chosen[:, 0::2] * rejected[:, 1::2] - chosen[:, 1::2] * rejected[:, 0::2]  # (B, k)
    return (blocks if weights is None else weights * blocks).sum(-1)


def pair_scores(batch: PreferenceBatch, values: Tensor, tokens: Any = None) -> PairScores:
    """Return values of the responses, (2B,) or (B,) for one-sided data, as scores of pairs that are no log-probs."""
    pairs, size = batch.pairs, len(batch)

    def side(k: int, lengths: Tensor) -> SequenceScores:
        # These are copies, because FSDP2 warns of views that are returned from the forward.
        statistics: dict[Need, Tensor] = {} if tokens is None else {TokenRewards(): tokens[k].clone()}
        return SequenceScores(values[k * size : (k + 1) * size].clone(), lengths, statistics)

    rejected = None if pairs.rejected_lengths is None else side(1, pairs.rejected_lengths)
    return PairScores(side(0, pairs.chosen_lengths), rejected, log_probs=False)


def hidden_states(model: nn.Module, batch: PreferenceBatch) -> Tensor:
    """Return the body's last hidden states of all R x T positions of a batch, flattened, (R T, H)."""
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    with reading(batch) as inputs:
        return cast(Tensor, whole.base_model(**inputs).last_hidden_state.flatten(0, 1))


def response_positions(rows: Rows) -> Tensor:
    """Return the position of every response token, (N,), in the order of `rows.targets`."""
    counts = rows.response_lengths
    # The tokens of a response stand in one piece that ends at `ends`, in both layouts.
    order = torch.argsort(rows.sequences, stable=True)
    starts = counts.cumsum(0) - counts
    responses = rows.sequences[order]
    index = torch.arange(len(order), device=order.device) - starts[responses]
    positions = torch.empty_like(rows.sequences)
    positions[order] = rows.ends[responses] - (counts[responses] - 1 - index)
    return positions
