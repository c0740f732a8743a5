"""A reference whose scores are read from the store, so that no model is in memory while the policy trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.references.lookup import NeededScores, text_keys
from lit_pref.references.reference import Reference
from lit_pref.references.store import StoreIdentity
from lit_pref.scores import Need, PairScores, SequenceScores, TokenLogps
from lit_pref.scoring.head import Readout
from lit_pref.scoring.scorer import Scorer


class Stored(Reference):
    """Looks up the scores that `reference` gave each response, by a hash of the response.

    Args:
        reference: a frozen reference.
        policy: the spec of the policy.
    """

    def __init__(self, reference: Reference, policy: ModelSpec) -> None:
        super().__init__()
        self.reference, self._policy = reference, policy
        self.label = reference.label
        self.own_tokenizer = False
        self._needed: NeededScores | None = None
        self._dtype = torch.float32

    @property
    def spec(self) -> ModelSpec:
        """The spec of the reference's model."""
        spec = self.reference.frozen_spec(self._policy)
        assert spec is not None
        return spec

    def open(self, identity: StoreIdentity, needed: NeededScores, own_tokenizer: bool) -> None:
        """Become ready to score.

        Args:
            identity: the identity of the scores in the store.
            needed: the needed scores.
            own_tokenizer: whether scores are looked up by the text instead of the policy's tokens.
        """
        self._needed, self.own_tokenizer = needed, own_tokenizer
        self._dtype = torch.float64 if identity.numerics.startswith("fp64") else torch.float32

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        """Do nothing: no weights are needed."""

    def to(self, device: torch.device | str) -> None:
        """Do nothing: scores are moved to the device of each batch."""

    def max_length(self, tokenizer: Any) -> int | None:
        return self.reference.max_length(tokenizer)

    def describe(self) -> str:
        self.reference.frozen_spec(self._policy)  # lets the reference know its policy
        return self.reference.describe() + (", reads the text with its own tokenizer" if self.own_tokenizer else "")

    def fingerprint(self) -> str:
        return self.spec.fingerprint()

    def score(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        """See `Reference.score`.

        Raises:
            UserError: the store lacks the score of a response.
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
        if self._needed is None:
            raise RuntimeError(f"the stored reference {self.label} has not been opened")
        needed, device = self._needed, batch.rows.input_ids.device
        rows = needed.rows(keys)
        if (rows < 0).any():
            pair = batch.pairs.names[int(np.flatnonzero(rows < 0)[0])]
            raise UserError(
                f"the store has no score of the reference '{self.label}' for {pair}: compute it with "
                "`python -m lit_pref score` and this configuration, or set model.reference_store to false"
            )

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(values).to(device)

        scores = SequenceScores(tensor(needed.scores[rows]).to(self._dtype), tensor(needed.lengths[rows]).long())
        if TokenLogps() in needs:
            logps = np.zeros((len(rows), int(needed.lengths[rows].max())))
            for k, row in enumerate(rows):
                logps[k, : needed.lengths[row]] = needed.token_logps(row)
            scores.statistics[TokenLogps()] = tensor(logps).to(self._dtype)
        return scores

    def readout(self, batch: PreferenceBatch) -> Readout:
        raise RuntimeError(f"the stored reference {self.label} has scores and no hidden states")
