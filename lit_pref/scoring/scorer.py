"""Scores of the pairs of a batch by a model: `score_pairs`, and the module that training wraps or shards."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UserError, visible
from lit_pref.scores import Need, PairScores, PromptValue, SequenceScores, TokenLogps
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.kernel_choice import kernels_for
from lit_pref.scoring.layout import reading_rows
from lit_pref.scoring.prefix_attention import PrefixSharedAttention
from lit_pref.scoring.products import HeadPrecision
from lit_pref.scoring.value import ValueHead


def score_pairs(
    model: nn.Module, batch: PreferenceBatch, needs: frozenset[Need] = frozenset(), against: Readout | None = None
) -> PairScores:
    """Return `score(y|x) = Σ_t log softmax(f_t)[y_t]` of both responses of each pair, in nats, and statistics.

    Sums are over response tokens only, in fp32 (fp64 for an fp64 model), also under autocast. Extra responses are
    scored in a separate forward pass, without statistics.

    Args:
        model: a Hugging Face causal LM, or a PeftModel of one.
        batch: B pairs in any layout.
        needs: statistics to compute; `statistics` of the result maps each need to its values.
        against: the readout of the same batch by the first reference, for `Tilt` and `Kl`.

    Raises:
        UserError: only the model itself can compute the logits of its head (see `Scorer.probe`).
    """
    return _scores(partial(readout, model), batch, needs, against)


def _scores(
    read: Callable[[PreferenceBatch], Readout],
    batch: PreferenceBatch,
    needs: frozenset[Need],
    against: Readout | None,
    value: ValueHead | None = None,
) -> PairScores:
    states = read(batch)
    values = {need for need in needs if isinstance(need, PromptValue)}
    scores = score_readout(states, batch, needs - values, against)
    for need in values:
        assert value is not None, "the scorer has no value head"
        scores.chosen.statistics[need] = value(states.hidden, batch)
    if batch.extra_response is not None:
        scores.extra_response = score_readout(read(batch.extra_response), batch.extra_response).chosen
    return scores


def readout(model: nn.Module, batch: PreferenceBatch, router_losses: list[Tensor] | None = None) -> Readout:
    """Return the hidden states that predict the response tokens of a batch, and the output head; computes no logits.

    Args:
        model: a Hugging Face causal LM, or a PeftModel of one.
        batch: B pairs in any layout; in the padded one if router losses are asked for.
        router_losses: a list to which the router loss of the forward pass is added.
    """
    body, head = _body_and_head(model)
    with reading(batch) as inputs:
        if router_losses is None:
            hidden = body(**inputs).last_hidden_state  # (R, T, H)
        else:
            hidden, loss = _hidden_and_router_loss(model, body, inputs)
            router_losses.append(loss)
    # index_select is used because the gradient of indexing is several times slower on a CPU.
    return _with_head(head, body, hidden.flatten(0, 1).index_select(0, batch.rows.predictors))


def score_readout(
    readout: Readout, batch: PreferenceBatch, needs: frozenset[Need] = frozenset(), against: Readout | None = None
) -> PairScores:
    """Return the scores of a batch, given its readout, without its extra responses; see `score_pairs`."""
    if not len(batch.rows.targets) == len(batch.rows.predictors) == len(batch.rows.sequences):
        raise ValueError("predictors, targets and sequences must have one entry for each response token")
    summed = [need for need in needs if need != TokenLogps()]
    logps, further = token_values(readout, batch.rows.targets, summed, against)  # (N,)
    values: dict[Need, Tensor] = {need: _sums(v, batch) for need, v in zip(summed, further, strict=True)}
    tokens = batch.rows.by_response(logps, len(batch)) if TokenLogps() in needs else None
    scores = _sums(logps, batch)

    def side(k: int, lengths: Tensor) -> SequenceScores:
        # These are copies, because FSDP2 warns of views that are returned from the forward.
        responses = slice(k * len(batch), (k + 1) * len(batch))
        statistics = {need: value[responses].clone() for need, value in values.items()}
        if tokens is not None and (logps_of_side := tokens[k]) is not None:
            statistics[TokenLogps()] = logps_of_side.clone()
        return SequenceScores(scores[responses].clone(), lengths, statistics)

    rejected = None if batch.pairs.rejected_lengths is None else side(1, batch.pairs.rejected_lengths)
    return PairScores(side(0, batch.pairs.chosen_lengths), rejected)


def _sums(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """Return the sum of each response's values, added in the same order every time."""
    sums, responses = values.new_zeros(batch.rows.num_sequences), batch.rows.sequences
    if values.device.type == "cuda":  # `index_add` would add by atomic operations there; this sorts first
        return sums.index_put((responses,), values, accumulate=True)
    return sums.index_add(0, responses, values)


class Scorer(nn.Module):
    """The module that strategies wrap or shard; it contains the model, and its forward scores a batch.

    FSDP2 gathers and reduces the weights of a root module only inside the root's forward. So the output head is used
    only here, and every trainable tensor belongs to this module.

    Args:
        model: a Hugging Face causal LM, or a PeftModel of one.
        head_precision: the rounding of operands in the head's multiplications.
        head_kernels: whether Triton's kernels read the logits where they can.
    """

    def __init__(self, model: nn.Module, head_precision: str = HeadPrecision.AUTO, head_kernels: bool = True) -> None:
        super().__init__()
        self.model = model
        self.head_precision = HeadPrecision(head_precision)
        self.head_kernels = head_kernels
        self.full_logits = False
        self.frees_weights = False
        """Whether sharding frees gathered weights after `forward`; a readout then has a copy of the head."""
        self.router_weight = 0.0
        """The weight of the model's router loss in the training loss; scores in training contain it unless it is 0."""
        self.value: ValueHead | None = None
        """A value head, if the objective needs one (`PromptValue`)."""

    def forward(
        self,
        batch: PreferenceBatch,
        needs: frozenset[Need] = frozenset(),
        against: Readout | None = None,
        only_readout: bool = False,
    ) -> PairScores | Readout:
        router_losses: list[Tensor] | None = [] if self.router_weight and self.training and not only_readout else None

        def read(batch: PreferenceBatch) -> Readout:
            states = (_full_logits if self.full_logits else readout)(self.model, batch, router_losses)
            # A kernel would read the memory of a tensor without data, which has none.
            launches = self.head_kernels and not isinstance(states.hidden, FakeTensor)
            kernels = kernels_for(states.hidden.device) if launches else None
            return replace(states, precision=self.head_precision, kernels=kernels)

        if only_readout:
            return read(batch).with_copied_head() if self.frees_weights else read(batch)
        scores = _scores(read, batch, needs, against, self.value)
        if router_losses:
            scores.router_loss = router_losses[0]  # a second one is that of the extra responses
        return scores

    def readout(self, batch: PreferenceBatch) -> Readout:
        """Return this model's readout of a batch, as `against` for another scorer; call it under `no_grad`."""
        return cast(Readout, self(batch, only_readout=True))

    @torch.no_grad()
    def probe(self) -> None:
        """Compare logits computed from the output head with the model's own, once, before the model is sharded.

        There are two comparisons on a tiny input: with the model's own hidden states, and with large random ones in
        their place, because small logits do not reveal a soft-cap. If they differ, scores are computed from the model's
        own logits from then on, with a warning: correct, but tokens x vocabulary in size.
        """
        try:
            reason = _difference(self.model)
        except UserError as error:
            reason = str(error)
        if reason is not None:
            self.full_logits = True
            words = f"{reason}; scoring falls back to full logits, which takes more memory"
            warnings.warn(visible(words), stacklevel=2)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Context in eval mode; afterwards every sub-module has its previous mode again."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _body_and_head(model: nn.Module) -> tuple[Any, Any]:
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    body, head = causal.base_model, causal.get_output_embeddings()
    if head is None or body is causal:
        raise UserError(f"{type(causal).__name__} has no separate body and output head")
    if hasattr(head, "base_layer"):
        raise UserError(
            "the output head carries a LoRA adapter, whose logits only the model itself can compute: "
            "leave the head out of lora.target_modules"
        )
    return body, head


@contextmanager
def reading(batch: PreferenceBatch) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which a model reads the batch, inside this context only."""
    inputs: dict[str, Any] = {"input_ids": batch.rows.input_ids, "use_cache": False}
    if batch.rows.segments is None:
        with reading_rows("padded"):
            yield inputs | {"attention_mask": batch.rows.attention_mask}
        return
    with reading_rows("prefix_shared"):
        attention = PrefixSharedAttention(batch.rows.segments)
        yield inputs | {"position_ids": batch.rows.position_ids, "shared_attention": attention}
    if not attention.calls:
        raise ValueError(
            "the model read a prefix-shared row without its attention: call enable_prefix_sharing(model) first"
        )


def _hidden_states(body: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def _with_head(head: Any, body: Any, hidden: Tensor) -> Readout:
    """Add the output head and its scaling: Granite divides `hidden Wᵀ`, Cohere multiplies it, Gemma caps it."""
    config = body.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Readout(hidden, head.weight, getattr(head, "bias", None), float(scale), softcap)


def _hidden_and_router_loss(model: Any, body: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the hidden states (R, T, H) and the router loss () that the model itself computes, over real tokens."""
    states: list[Tensor] = []
    with body.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state)):
        output = model(**inputs, output_router_logits=True, logits_to_keep=1)
    return states[0], output.aux_loss


def _full_logits(model: nn.Module, batch: PreferenceBatch, router_losses: list[Tensor] | None = None) -> Readout:
    with reading(batch) as inputs:
        output = model(**inputs, **({} if router_losses is None else {"output_router_logits": True}))
    logits = output.logits
    if router_losses is not None:
        router_losses.append(output.aux_loss)
    return Readout(logits.flatten(0, 1).index_select(0, batch.rows.predictors), weight=None)


def _difference(model: nn.Module) -> str | None:
    """Return a sentence if logits from the head differ from the model's own logits, else None."""
    body, head = _body_and_head(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(head.weight.shape[0], (2, 4), generator=generator).to(head.weight.device)
    mask = torch.ones_like(ids)
    with evaluating(model), torch.autocast(ids.device.type, enabled=False):
        hidden_states = _hidden_states(body, ids, mask)
        noise = torch.randn(hidden_states.shape, generator=generator).to(hidden_states)
        widest = Readout(noise.flatten(0, 1), head.weight).logits().abs().max()
        large = noise * (100 / widest.clamp_min(1e-6)).to(noise.dtype)

        def replace_hidden(module: nn.Module, args: Any, output: Any) -> Any:
            output.last_hidden_state = large
            return output

        readings = [(hidden_states, model(input_ids=ids, attention_mask=mask, use_cache=False).logits)]
        with body.register_forward_hook(replace_hidden):
            readings.append((large, model(input_ids=ids, attention_mask=mask, use_cache=False).logits))
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(hidden_states.dtype, 3e-2)
        for hidden, logits in readings:
            ours = _with_head(head, body, hidden.flatten(0, 1)).logits()
            theirs = logits.flatten(0, 1).to(ours.dtype)
            if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= tolerance * theirs.abs().max():
                return f"the logits of {type(model).__name__} are not what its output head gives for its hidden states"
    return None
