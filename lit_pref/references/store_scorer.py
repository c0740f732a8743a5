"""Computes scores for the store: of which pairs, by which model, in which layout and with which numerics."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.errors import UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.spec import ModelSpec
from lit_pref.references.lookup import NO_RESPONSE, Array, TablePairs
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.store import KEY, Scores
from lit_pref.references.stored import Stored
from lit_pref.run_context import ROUNDED, RunContext
from lit_pref.scores import Need, PairScores, SequenceScores, TokenLogps
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.products import HeadPrecision
from lit_pref.scoring.scorer import Scorer


class LazyScorer:
    """The model of a reference, built when the first batch has to be scored.

    Args:
        spec: the spec of the model.
        place: rounds, shards and moves the model as the run does with its policy.
        context: the context in which the run's models are called.
        needs: statistics to compute with the scores.
        layout: the layout of the batches.
    """

    def __init__(
        self,
        spec: ModelSpec,
        place: Callable[[Scorer], Scorer],
        context: Callable[[], AbstractContextManager[Any]],
        needs: frozenset[Need],
        layout: Layout,
    ) -> None:
        self._spec, self._place, self._context, self._needs = spec, place, context, needs
        self.layout = layout
        self._scorer: Scorer | None = None

    @property
    def is_built(self) -> bool:
        return self._scorer is not None

    def score(self, batch: PreferenceBatch, device: torch.device) -> Scores:
        """Return the scores of both responses of a batch: first the chosen ones, then the rejected ones."""
        if self._scorer is None:
            spec = self._spec
            scorer = Scorer(spec.build(), spec.head_precision, spec.head_kernels).eval().requires_grad_(False)
            if self.layout == "prefix_shared":
                enable_prefix_sharing(scorer.model)
            scorer.probe()
            self._scorer = self._place(scorer)
        with torch.no_grad(), self._context():
            pairs: PairScores = self._scorer(batch.to(device), self._needs)
        sides = [side for side in (pairs.chosen, pairs.rejected) if side is not None]
        keys = [key for side in zip(*batch.pairs.response_keys, strict=True) for key in side if key is not None]
        lengths = torch.cat([side.lengths for side in sides])
        return Scores(
            np.array([key or NO_RESPONSE for key in keys], KEY),
            torch.cat([side.scores for side in sides]).double().cpu().numpy(),
            lengths.int().cpu().numpy(),
            self._tokens(sides) if TokenLogps() in self._needs else None,
        )

    @staticmethod
    def _tokens(sides: list[SequenceScores]) -> Any:
        """The log-probs of all tokens, without the zeros that pad each response."""
        kept = []
        for side in sides:
            logps = side.statistics[TokenLogps()]
            positions = torch.arange(logps.shape[1], device=logps.device)
            kept.append(logps[positions < side.lengths[:, None]])
        return torch.cat(kept).cpu().numpy()


class PairScorer:
    """Scores the pairs of a table, a micro-batch at a time.

    Args:
        model: the reference's model.
        pairs: the pairs of the table, in the ids that the reference reads.
        rows: (distinct pairs,) a row of the table for each distinct pair.
        pad_id: the id that pads rows.
        device: the device of the model.
        label: the name of the reference in messages.
    """

    def __init__(
        self, model: LazyScorer, pairs: TablePairs, rows: Array, pad_id: int, device: torch.device, label: str
    ) -> None:
        self._model, self._pairs, self._rows = model, pairs, rows
        self._pad_id, self._device, self._label = pad_id, device, label

    def score(self, pairs: Array) -> Scores:
        """Return the scores of one micro-batch: first those of the chosen responses, then those of the rejected ones.

        Args:
            pairs: the indices of distinct pairs.

        Raises:
            UserError: a score is not finite.
        """
        # Pairs have ids only, because pairs of one split may have columns that those of another lack.
        bare: dict[str, Any] = {"margin": None, "probability": None, "columns": {}, "token_columns": {}}
        batch = [replace(self._pairs[int(self._rows[pair])], **bare) for pair in pairs]
        scores = self._model.score(collate(batch, self._pad_id, layout=self._model.layout), self._device)
        if not np.isfinite(scores.scores).all():
            response = int(np.flatnonzero(~np.isfinite(scores.scores))[0])  # because all chosen responses come first
            raise UserError(
                f"{batch[response % len(batch)].place}: {self._label} gives a response of this pair the score "
                f"{scores.scores[response]}: check its weights, or give it a larger dtype"
            )
        return scores


def lazy_scorer(reference: Stored, needs: frozenset[Need], run: RunContext) -> LazyScorer:
    """Return the scorer of a stored reference, as this run would score with it.

    Args:
        reference: the stored reference.
        needs: statistics to compute with the scores.
        run: gives device, precision, layout and sharding.
    """

    def place(scorer: Scorer) -> Scorer:
        if _follows_policy(reference):
            scorer = run.convert(scorer)  # type: ignore[assignment]
        if run.shard is not None:
            run.shard(scorer)
        return scorer.to(run.device)

    # Under `bf16-true` the context is for models rounded to bf16; other models keep their own dtype.
    context = run.forward_context if _follows_policy(reference) or _is_mixed(run) else nullcontext
    return LazyScorer(reference.spec, place, context, needs, layout_of(reference, run))


def layout_of(reference: Stored, run: RunContext) -> Layout:
    """The layout in which the reference scores pairs for the store: the run's, if its model supports it."""
    shares = run.layout == "prefix_shared" and prefix_sharing_obstacle(reference.spec) is None
    return "prefix_shared" if shares else "padded"


def numerics(reference: Stored, run: RunContext) -> str:
    """`fp32` or `fp64` if weights and computation have that precision, else all that the numbers depend on."""
    spec = reference.spec
    dtype = ROUNDED.get(run.precision, spec.dtype) if _follows_policy(reference) else spec.dtype
    mixed = _is_mixed(run)
    matmul = torch.get_float32_matmul_precision()
    # Weights rounded after loading give other numbers than weights stored in that dtype.
    rounded = "" if dtype == spec.dtype else f"-from-{spec.dtype}"
    in_bf16 = computes_in_bf16(run.precision, dtype, run.dtype_in_transit)
    chosen = HeadPrecision(spec.head_precision).chosen(run.device.type, in_bf16)
    head = "" if chosen is HeadPrecision.FP32 else f"-head-{chosen}"
    if dtype == "float64":  # autocast leaves it alone
        return f"fp64{head}{rounded}"
    cast = f"+{run.dtype_in_transit}-weights" if dtype == "float32" and run.dtype_in_transit is not None else ""
    if dtype == "float32" and not (mixed or cast or head) and matmul == "highest":
        return "fp32" + rounded
    computed = run.precision if mixed else "fp32" if dtype == "float32" else dtype
    weights = "" if dtype == "float32" or not mixed else f"-{dtype}"
    # The head may multiply in fp32 even if the model does not.
    coarse = "" if matmul == "highest" else f"-matmul-{matmul}"
    layout = "shared" if layout_of(reference, run) == "prefix_shared" else "padded"  # names in existing stores
    how = (run.device.type, layout, spec.attention or "default")
    return "/".join([f"{computed}{cast}{weights}{head}{rounded}{coarse}", *how])


def computes_in_bf16(precision: str, dtype: str, in_transit: str | None) -> bool:
    """Whether a model of some dtype computes in bf16 under Lightning's precision of a run.

    Args:
        precision: Lightning's name.
        dtype: the dtype of the weights, after the rounding by that precision.
        in_transit: the dtype to which sharding casts fp32 weights; None if it casts none.
    """
    if dtype == "float32" and in_transit is not None:
        dtype = in_transit
    return dtype == "bfloat16" or (precision == "bf16-mixed" and dtype != "float64")


def _follows_policy(reference: Stored) -> bool:
    """Whether the reference has the policy's own weights, which are rounded as the policy's are."""
    return not isinstance(reference.reference, Pretrained)


def _is_mixed(run: RunContext) -> bool:
    return run.precision not in {"32-true", *ROUNDED}
