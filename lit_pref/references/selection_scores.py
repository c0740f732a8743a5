"""Scores for the selection of training pairs: log-probs of policy and reference before training, from the store."""

from collections.abc import Sequence

import numpy as np

from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.selection.selection import Choice, Logps, Pool, Selection
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.objectives.base import Objective
from lit_pref.references.prepare import ReferencePreparation
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy, Reference
from lit_pref.references.stored import Stored
from lit_pref.run_context import RunContext


class SelectionScores:
    """Scores the training pairs of a run for a selection.

    Args:
        policy: spec of the policy; its model is not built here.
        objective: decides whether pairs have rejected responses.
        references: the run's references; a selection may compare with the first.
        run: gives ranks, device, precision and layout.
    """

    def __init__(
        self, policy: ModelSpec, objective: Objective, references: Sequence[Reference], run: RunContext
    ) -> None:
        self.policy, self.objective, self.references, self.run = policy, objective, references, run

    def pool_and_choice(self, pairs: PairView, selection: Selection) -> tuple[Pool, Choice]:
        """Return the scored pool of pairs and the selection from it; the same on every rank.

        Args:
            pairs: all pairs of the training split.
            selection: the rule.

        Raises:
            UserError: a pair cannot be scored, or the selection does not suit these pairs.
        """
        try:
            pool = self.pool(pairs, selection)
            choice = selection.choose(pool)
        except UsageError:
            raise
        except UserError as error:
            self.run.refuse(str(error))
        return pool, self.run.broadcast(choice)

    def pool(self, pairs: PairView, selection: Selection) -> Pool:
        """Collect the columns and scores that a selection reads, and the margins if there are any.

        Raises:
            UsageError: the pairs lack a column or a response, or there is no such reference.
        """
        names = {"margin", selection.margin_column or "margin"}
        if unknown := names - {"margin", *pairs.columns}:
            (name,) = unknown
            raise UsageError(
                f"data.selection.margin_column is `{name}`, which is not one of the pairs' columns "
                f"({', '.join(pairs.columns) or 'none'}); add it to data.columns"
            )
        policy = reference = None
        if selection.reads_policy:
            self._refuse_one_sided(pairs, selection)
            policy = self._logps(InitialPolicy(), "selection (policy)", pairs)
        if selection.reference is not False:
            reference = self._logps(self._reference(selection), "selection (reference)", pairs)
        return Pool(
            ids=pairs.ids,
            prompts=pairs.column("prompt_id"),
            places=pairs.column("place"),
            columns={name: pairs.column(name).astype(np.float64) for name in sorted(names)},
            lengths=pairs.lengths[:, 1:],
            policy=policy,
            reference=reference,
        )

    def _logps(self, reference: Reference, label: str, pairs: PairView) -> Logps:
        """Log-probs of all responses under a frozen model, from the store; missing ones are computed first."""
        limit = reference.max_length(self.policy.load_tokenizer())
        if limit is not None and pairs.longest > limit:
            raise UserError(
                f"the longest pair has {pairs.longest} tokens, and {reference.describe()}, which data.selection reads, "
                f"takes at most {limit}: lower data.max_length"
            )
        spec = reference.frozen_spec(self.policy)
        if spec is None or spec.trust_remote_code:
            why = "moves" if spec is None else "runs its own code, which the store's keys do not cover"
            raise UsageError(
                f"data.selection reads scores from the store, and the {label} {why}: select pairs with a frozen model "
                "whose architecture is part of transformers"
            )
        splits = [(pairs, np.arange(len(pairs)))]
        stored = Stored(reference, self.policy)
        preparation = ReferencePreparation.of(stored, label, self.policy, self.objective, splits, self.run)
        needed = preparation.fill()
        keys = preparation.table["lookup_keys"][: len(pairs)]  # extra responses to the same prompts may follow
        rows = np.stack([needed.rows(list(side)) for side in keys.T], axis=1)
        return Logps(needed.scores[rows], needed.lengths[rows])

    def _reference(self, selection: Selection) -> Reference:
        if isinstance(selection.reference, str):
            reference: Reference = Pretrained(selection.reference)
        elif not self.references:
            raise UsageError(
                f"data.selection: {type(selection).__name__} compares with the run's first reference, and "
                f"{type(self.objective).__name__} reads none; name one (data.selection.reference FOLDER)"
            )
        else:
            first = self.references[0]
            reference = first.reference if isinstance(first, Stored) else first
        spec = reference.frozen_spec(self.policy)
        if spec is not None and spec.fingerprint() == self.policy.base().fingerprint():
            raise UsageError(
                "data.selection: the reference is the policy itself before its first step, so every implicit margin is "
                "0; name the model that the policy was trained from (data.selection.reference FOLDER), or set "
                "data.selection.reference to false"
            )
        return reference

    def _refuse_one_sided(self, pairs: PairView, selection: Selection) -> None:
        if not (pairs.lengths[:, 2] > 0).all():
            raise UsageError(
                f"data.selection: {type(selection).__name__} reads both responses, and {type(self.objective).__name__} "
                "only the chosen ones; choose by Random or ExplicitMargin, or write a file of chosen pairs with "
                "`python -m lit_pref select` and an objective of pairs"
            )


def summary(pool: Pool, choice: Choice, selection: Selection) -> str:
    """Describe in one line how many pairs were kept, and their scores."""
    kept = choice.scores[choice.indices]
    of = f"{len(kept):,} of {len(pool.ids):,} pairs ({len(kept) / len(pool.ids):.1%})"
    return (
        f"{selection!r}: kept {of}, score from {kept.min():.4g} to {kept.max():.4g}, {choice.tied:,} ties at the edge"
    )
