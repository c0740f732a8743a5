"""A reference whose scores are read from the store, so that no model is in memory while the policy trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_pref.batch import PairData, PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.references.lookup import Array, NeededScores, text_keys
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
        self._identity = ""
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
        self._needed, self._identity, self.own_tokenizer = needed, identity.key, own_tokenizer
        self._dtype = torch.float64 if identity.numerics.startswith("fp64") else torch.float32

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        """Do nothing: no weights are needed."""

    @property
    def copies(self) -> list[Scorer]:
        """An empty list: it has no weights, and scores are moved to the device of each batch."""
        return []

    def max_length(self, tokenizer: Any) -> int | None:
        return self.reference.max_length(tokenizer)

    def describe(self) -> str:
        self.reference.frozen_spec(self._policy)  # lets the reference know its policy
        return self.reference.describe() + (", reads the text with its own tokenizer" if self.own_tokenizer else "")

    def fingerprint(self) -> str:
        return self.spec.fingerprint()

    @property
    def key(self) -> str:
        """The key of its scores in `PreferenceBatch.stored`."""
        return f"{self._identity}{' by text' if self.own_tokenizer else ''}"

    def add_scores(self, batch: PreferenceBatch, needs: frozenset[Need]) -> None:
        """Look up the scores and attach them to a batch in host memory.

        If one is missing, or the reference has not been opened, the batch carries none: `score` then says what is
        wrong, in the process of the run and not in a worker of a loader.
        """
        if self._needed is None:
            return
        sides = self._sides(batch, needs)
        if all((rows >= 0).all() for rows, _ in sides.values()):
            batch.stored[self.key] = self._scores(sides)

    def score(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        """See `Reference.score`: the scores that the batch carries, or else they are looked up now.

        Raises:
            UserError: the store lacks the score of a response.
        """
        carried = batch.stored.get(self.key)
        if carried is not None and (TokenLogps() not in needs or TokenLogps() in carried.chosen.statistics):
            return carried
        sides = self._sides(batch, needs)
        for rows, _ in sides.values():
            if (rows < 0).any():
                pair = batch.pairs.names[int(np.flatnonzero(rows < 0)[0])]
                raise UserError(
                    f"the store has no score of the reference '{self.label}' for {pair}: compute it with "
                    "`python -m lit_pref score` and this configuration, or set model.reference_store to false"
                )
        return self._scores(sides).to(batch.rows.input_ids.device)

    def _sides(self, batch: PreferenceBatch, needs: frozenset[Need]) -> dict[str, tuple[Array, frozenset[Need]]]:
        """Return, by side of the batch, the rows of its responses in the table, -1 for missing ones, and its needs."""
        if self._needed is None:
            raise RuntimeError(f"the stored reference {self.label} has not been opened")
        chosen, rejected = self._keys(batch.pairs)
        sides = {"chosen": (self._needed.rows(chosen), needs)}
        if batch.pairs.rejected_lengths is not None:
            sides["rejected"] = (self._needed.rows(rejected), needs)
        if batch.extra_response is not None:
            extra, _ = self._keys(batch.extra_response.pairs)
            sides["extra_response"] = (self._needed.rows(extra), frozenset())
        return sides

    def _keys(self, pairs: PairData) -> tuple[list[Any], list[Any]]:
        if not self.own_tokenizer:
            keys: Sequence[tuple[bytes, bytes | None]] = pairs.response_keys
        else:
            assert pairs.texts is not None
            keys = [text_keys(text) for text in pairs.texts]
        chosen, rejected = zip(*keys, strict=True)
        return list(chosen), list(rejected)

    def _scores(self, sides: dict[str, tuple[Array, frozenset[Need]]]) -> PairScores:
        scores = {side: self._side(rows, needs) for side, (rows, needs) in sides.items()}
        return PairScores(scores["chosen"], scores.get("rejected"), scores.get("extra_response"))

    def _side(self, rows: Array, needs: frozenset[Need]) -> SequenceScores:
        needed = self._needed
        assert needed is not None
        values, lengths = torch.from_numpy(needed.scores[rows]), torch.from_numpy(needed.lengths[rows])
        scores = SequenceScores(values.to(self._dtype), lengths.long())
        if TokenLogps() in needs:
            logps = np.zeros((len(rows), int(needed.lengths[rows].max())))
            for k, row in enumerate(rows):
                logps[k, : needed.lengths[row]] = needed.token_logps(row)
            scores.statistics[TokenLogps()] = torch.from_numpy(logps).to(self._dtype)
        return scores

    def readout(self, batch: PreferenceBatch) -> Readout:
        raise RuntimeError(f"the stored reference {self.label} has scores and no hidden states")


def add_stored_scores(references: Sequence[Stored], needs: frozenset[Need], batch: PreferenceBatch) -> None:
    """Look up the scores of these references and attach them to a batch in host memory."""
    for reference in references:
        reference.add_scores(batch, needs)
