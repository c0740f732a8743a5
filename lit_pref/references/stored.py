"""A reference whose scores are read from the store: while the policy trains, its weights are nowhere."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.spec import ModelSpec
from lit_pref.references.addresses import NOWHERE, text_keys
from lit_pref.references.reference import Reference
from lit_pref.references.store import ADDRESS, Identity, Scores
from lit_pref.references.wanted import NeededScores
from lit_pref.scores import Need, PairScores, SequenceScores, TokenLogps
from lit_pref.scoring.head import Readout
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import Scorer

Side = Literal["chosen", "rejected"]


class Stored(Reference):
    """Looks up what `reference` gave each response, by the response's content: no row can be another's.

    Args:
        reference: one that never moves.
        policy: what the policy is built from.
    """

    def __init__(self, reference: Reference, policy: ModelSpec) -> None:
        super().__init__()
        self.reference, self._policy = reference, policy
        self.label = reference.label
        self.own_tokenizer = False
        self._wanted: NeededScores | None = None
        self._dtype = torch.float32

    @property
    def source(self) -> ModelSpec:
        """The model that it is."""
        source = self.reference.frozen_spec(self._policy)
        assert source is not None
        return source

    def open(self, identity: Identity, wanted: NeededScores, own_tokenizer: bool) -> None:
        """Be ready to score.

        Args:
            identity: of the scores.
            wanted: the scores.
            own_tokenizer: whether they are looked up by the text, not by the policy's tokens.
        """
        self._wanted, self.own_tokenizer = wanted, own_tokenizer
        self._dtype = torch.float64 if identity.numerics.startswith("fp64") else torch.float32

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        """Nothing: it needs no weights."""

    def to(self, device: torch.device | str) -> None:
        """Nothing: its scores go where the batch is."""

    def max_length(self, tokenizer: Any) -> int | None:
        return self.reference.max_length(tokenizer)

    def describe(self) -> str:
        self.reference.frozen_spec(self._policy)  # from here on it knows which policy's it is
        return self.reference.describe() + (", reads the text with its own tokenizer" if self.own_tokenizer else "")

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def score(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        """See `Reference.score`.

        Raises:
            UserError: the store holds no score of a response.
        """
        if self.own_tokenizer:
            assert batch.pairs.texts is not None
            keys: Sequence[tuple[bytes, bytes | None]] = [text_keys(text) for text in batch.pairs.texts]
        else:
            keys = batch.pairs.response_keys
        chosen, rejected = (list(side) for side in zip(*keys, strict=True))
        first = self._side(chosen, batch, needs)
        second = None if batch.pairs.rejected_lengths is None else self._side(rejected, batch, needs)
        return PairScores(
            first, second, None if batch.extra_response is None else self.score(batch.extra_response).chosen
        )

    def _side(self, keys: list[Any], batch: PreferenceBatch, needs: frozenset[Need]) -> SequenceScores:
        if self._wanted is None:
            raise RuntimeError(f"the stored reference {self.label} has not been opened")
        wanted, device = self._wanted, batch.rows.input_ids.device
        rows = wanted.rows(keys)
        if (rows < 0).any():
            pair = batch.pairs.names[int(np.flatnonzero(rows < 0)[0])]
            raise UserError(
                f"the store holds no score of the reference '{self.label}' for {pair}: fill it with "
                "`python -m lit_pref score` and this configuration, or set model.reference_store to false"
            )

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(values).to(device)

        scores = SequenceScores(tensor(wanted.scores[rows]).to(self._dtype), tensor(wanted.lengths[rows]).long())
        if TokenLogps() in needs:
            logps = np.zeros((len(rows), int(wanted.lengths[rows].max())))
            for k, row in enumerate(rows):
                logps[k, : wanted.lengths[row]] = wanted.token_logps(row)
            scores.statistics[TokenLogps()] = tensor(logps).to(self._dtype)
        return scores

    def readout(self, batch: PreferenceBatch) -> Readout:
        raise RuntimeError(f"the stored reference {self.label} has scores and no hidden states")


class LazyScorer:
    """The model of a reference, built where a first batch has to be scored and not before.

    Args:
        source: what it is built from.
        place: rounds, shards and moves it as the run does its policy.
        context: in which the run's models are called.
        needs: what is kept beside the scores.
        layout: of the batches that it is given.
    """

    def __init__(
        self,
        source: ModelSpec,
        place: Callable[[Scorer], Scorer],
        context: Callable[[], AbstractContextManager[Any]],
        needs: frozenset[Need],
        layout: Layout,
    ) -> None:
        self._source, self._place, self._context, self._needs = source, place, context, needs
        self.layout = layout
        self._scorer: Scorer | None = None

    def score(self, batch: PreferenceBatch, device: torch.device) -> Scores:
        """The scores of both responses of a batch: first the chosen ones, then the rejected ones."""
        if self._scorer is None:
            scorer = Scorer(self._source.build()).eval().requires_grad_(False)
            if self.layout == "prefix_shared":
                enable_prefix_sharing(scorer.model)
            scorer.probe()
            self._scorer = self._place(scorer)
        with torch.no_grad(), self._context():
            pairs: PairScores = self._scorer(batch.to(device), self._needs)
        sides = [side for side in (pairs.chosen, pairs.rejected) if side is not None]
        addresses = [a for side in zip(*batch.pairs.response_keys, strict=True) for a in side if a is not None]
        lengths = torch.cat([side.lengths for side in sides])
        return Scores(
            np.array([address or NOWHERE for address in addresses], ADDRESS),
            torch.cat([side.scores for side in sides]).double().cpu().numpy(),
            lengths.int().cpu().numpy(),
            self._tokens(sides) if TokenLogps() in self._needs else None,
        )

    @staticmethod
    def _tokens(sides: list[SequenceScores]) -> Any:
        """Without the zeros that follow each response."""
        kept = []
        for side in sides:
            logps = side.statistics[TokenLogps()]
            places = torch.arange(logps.shape[1], device=logps.device)
            kept.append(logps[places < side.lengths[:, None]])
        return torch.cat(kept).cpu().numpy()
