"""Prepares the references of a run: takes defaults, decides which are stored, and computes missing scores."""

import gc
import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.models.encoding import Encoding
from lit_pref.models.spec import ModelSpec
from lit_pref.objectives.base import Objective
from lit_pref.references.filling import Ranks, StoreFiller, load
from lit_pref.references.lookup import Array, ExtraResponses, NeededScores, SplitPairs, TablePairs, key_table
from lit_pref.references.moving import MovingReference
from lit_pref.references.own_tokenizer import same_tokenizer
from lit_pref.references.plan import Split
from lit_pref.references.reference import AdapterOff, InitialPolicy, Reference
from lit_pref.references.store import ReferenceStore, StoreIdentity
from lit_pref.references.store_scorer import PairScorer, lazy_scorer, numerics
from lit_pref.references.stored import Stored
from lit_pref.run_context import RunContext
from lit_pref.scores import TokenLogps


def references_of(objective: Objective, references: list[Reference] | None, policy: ModelSpec) -> list[Reference]:
    """Return the given references, or by default those that the objective needs.

    The default is no reference, or the policy as it was before training: under LoRA the policy with its adapter
    switched off.

    Raises:
        UsageError: The objective does not take this number of references, there is no adapter to switch off, or a
            reference should follow the adapters of the policy.
    """
    if references is None:
        initial = InitialPolicy() if policy.lora is None else AdapterOff()
        references = [] if objective.requirements.min_references == 0 else [initial]
    low, high, given = objective.requirements.min_references, objective.requirements.max_references, len(references)
    if given < low or (high is not None and given > high):
        takes = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        several = "; several are mixed by model.objective.reference Harmonic or Geometric" if given > 1 else ""
        raise UsageError(
            f"{type(objective).__name__} takes {takes} reference(s), model.references has {given}; "
            f"list as many as it takes, or leave model.references out{several}"
        )
    if any(isinstance(reference, AdapterOff) for reference in references) and not _has_adapters(policy):
        raise UsageError(
            "references: AdapterOff needs a policy with LoRA (model.policy.lora, or a model.policy.path with an "
            "adapter); use InitialPolicy without it"
        )
    if any(isinstance(reference, MovingReference) for reference in references) and _has_adapters(policy):
        raise UsageError(
            "references: MovingReference mixes the policy's whole weights, and with LoRA only adapters are trained, "
            "whose mean is not the adapter of the mean weights: train without adapters (model.policy.lora null, or "
            "model.policy.merge_adapter true), or use AdapterOff"
        )
    return references


def _has_adapters(policy: ModelSpec) -> bool:
    try:
        return policy.adapters is not None
    except UserError:  # what is wrong with the policy's folder is said when it is loaded
        return False


def through_store(
    references: list[Reference], objective: Objective, policy: ModelSpec, reference_store: bool | None
) -> list[Reference]:
    """Return the references, with those whose scores are kept on disk wrapped in `Stored`.

    Raises:
        UsageError: All references should be stored, but one changes in training, or more than its scores is read.
    """
    if reference_store is False:
        return references
    compared = objective.requirements.compares
    result: list[Reference] = []
    for k, reference in enumerate(references):
        live = compared and k == 0
        if reference_store and live:
            raise UsageError(
                f"{type(objective).__name__} compares the policy's whole distributions with those of its first "
                "reference, and the store contains scores only: leave model.reference_store out to keep that "
                "reference live"
            )
        spec = reference.frozen_spec(policy)
        live = live or spec is None or spec.trust_remote_code
        if reference_store and live:
            why = "moves" if spec is None else "runs its own code, which the store's keys do not cover"
            raise UsageError(
                f"the reference '{reference.label}' {why}, so its scores cannot be stored: leave "
                "model.reference_store out, which stores those of other references"
            )
        result.append(reference if live else Stored(reference, policy))
    return result


def prepare_references(
    references: Sequence[Reference], policy: ModelSpec, objective: Objective, splits: list[Split], run: RunContext
) -> list["ReferencePreparation"]:
    """Return the preparation of each stored reference: the scores it needs for these pairs, and its store.

    Args:
        references: the run's references; live ones are skipped.
        policy: the spec of the run's policy.
        objective: decides which statistics and responses are scored.
        splits: the pairs that will be read.
        run: gives ranks, device, precision and layout.

    Raises:
        UserError: A reference cannot score these pairs.
    """
    return [
        ReferencePreparation.of(reference, f"reference {k} ({reference.label})", policy, objective, splits, run)
        for k, reference in enumerate(references)
        if isinstance(reference, Stored)
    ]


@dataclass
class ReferencePreparation:
    """A stored reference, the scores that a run needs of it, and everything required to compute the missing ones.

    Args:
        reference: the stored reference, which still has to be opened.
        label: its name in messages.
        run: gives ranks, device, precision and layout.
        tokenizer: the tokenizer of the reference's input: the policy's, or its own.
        encoding: the encoding of the reference's own tokenizer; None if it reads the policy's tokens.
        keeps_tokens: whether the log-prob of every token is stored too.
        pairs: the pairs of all splits, one after another, in the ids that the reference reads.
        store: the store of its scores.
        table: (pairs,) `lookup.TABLE` of these pairs.
        needed: the scores of the responses in the table.
    """

    reference: Stored
    label: str
    run: RunContext
    tokenizer: Any
    encoding: Encoding | None
    keeps_tokens: bool
    pairs: TablePairs
    store: ReferenceStore
    table: Any
    needed: NeededScores

    @classmethod
    def of(
        cls,
        reference: Stored,
        label: str,
        policy: ModelSpec,
        objective: Objective,
        splits: Sequence[Split],
        run: RunContext,
    ) -> "ReferencePreparation":
        """Compute the keys of all responses that the objective reads of these pairs.

        Raises:
            UserError: The reference's tokens cannot be compared with the policy's, or a pair is too long for it.
        """
        own, policy_tokenizer = reference.spec.load_tokenizer(), policy.load_tokenizer()
        other = None if own is policy_tokenizer or same_tokenizer(own, policy_tokenizer) else own
        keeps_tokens = TokenLogps() in objective.requirements.reference_statistics
        if other is not None and keeps_tokens:
            raise UserError(
                f"the objective compares single tokens with those of the reference '{reference.label}', which has a "
                "tokenizer of its own: use a reference with the policy's tokenizer"
            )
        all_splits: list[tuple[SplitPairs, Array]] = [*splits]
        if "extra_response" in objective.requirements.sides:
            function = objective.requirements.extra_function
            all_splits += [(ExtraResponses(pairs, function), indices) for pairs, indices in splits]
        table = np.concatenate([key_table(pairs, other, run.say)[indices] for pairs, indices in all_splits])
        encoding = None if other is None else Encoding(other)
        store = _store(reference, keeps_tokens, run)
        tokenizer = policy_tokenizer if other is None else other
        preparation = cls(
            reference,
            label,
            run,
            tokenizer,
            encoding,
            keeps_tokens,
            TablePairs(all_splits, encoding),
            store,
            table,
            NeededScores(table),
        )
        preparation._refuse_too_long()
        return preparation

    def fill(self) -> NeededScores:
        """Compute the missing scores and return all that are needed.

        Raises:
            UserError: A score is missing although another process should have computed it.
        """
        self.store.open()
        run, needed = self.run, self.needed
        terminal = sys.stdout.isatty() and run.is_global_zero
        ranks = None if run.shard is None else Ranks(run.rank, run.world_size, run.broadcast, run.barrier)
        scorer = self._scorer()
        if StoreFiller(self.store, needed, scorer.score, self.label, run.say, terminal, ranks).run():
            del scorer  # this also frees the model
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            # Scores are read again, as in every later run: if one was computed twice, the first one in the store is
            # used.
            needed = NeededScores(self.table)
            load(self.store, needed, set())
        if missing := sum(run.gather(needed.missing)):
            run.refuse(
                f"{missing} scores of the reference '{self.reference.label}' are not in {self.store.folder}, where "
                "another process should have stored them: processes that share a reference must share LIT_PREF_CACHE"
            )
        return needed

    def open(self) -> NeededScores:
        """Compute the missing scores, make the reference ready to score, and return its scores.

        Raises:
            UserError: see `fill`.
        """
        needed = self.fill()
        self.reference.open(self.store.identity, needed, self.encoding is not None)
        return needed

    def differences(self, rows: int, seed: int) -> tuple[Array, Array]:
        """Stored scores of up to `rows` randomly drawn pairs, and the same computed again; (2 x rows,) each, nats."""
        load(self.store, self.needed, set())
        everything = np.arange(len(self.needed.pairs))
        held = np.setdiff1d(everything, self.needed.lacking(everything))
        drawn = np.random.default_rng(seed).permutation(held)[:rows]
        if not len(drawn):
            return np.empty(0), np.empty(0)
        scorer = self._scorer()
        # Each batch has one pair, unlike in a block: whether that changes a score is part of the comparison.
        again = np.concatenate([scorer.score(drawn[k : k + 1]).scores for k in range(len(drawn))])
        stored = self.needed.pairs[drawn].reshape(-1)
        return self.needed.scores[stored[stored >= 0]], again

    def _scorer(self) -> PairScorer:
        needs = frozenset({TokenLogps()} if self.keeps_tokens else ())
        tokenizer = self.tokenizer
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model = lazy_scorer(self.reference, needs, self.run)
        return PairScorer(model, self.pairs, self.needed.first, pad_id, self.run.device, self.label)

    def _refuse_too_long(self) -> None:
        limit = None if self.encoding is None else self.reference.spec.max_length()
        if limit is not None and len(self.table) and (longest := int(self.table["tokens"].max())) > limit:
            pair = self.pairs[int(self.table["tokens"].argmax())]
            raise UserError(
                f"{pair.place} has {longest} tokens for the reference '{self.reference.label}', which reads at most "
                f"{limit}: lower data.max_length"
            )


def _store(reference: Stored, keeps_tokens: bool, run: RunContext) -> ReferenceStore:
    spec = reference.spec
    fingerprint = reference.fingerprint()
    if spec.path is None:
        # The weights that a seed gives depend on the versions of these libraries.
        drawn_by = [fingerprint, *(importlib.metadata.version(name) for name in ("torch", "transformers"))]
        fingerprint = hashlib.sha256(" ".join(drawn_by).encode()).hexdigest()
    aggregation = "tokens" if keeps_tokens else "sum"
    return ReferenceStore(StoreIdentity(fingerprint, numerics(reference, run), aggregation, spec.describe()))


def tolerance_of(numerics: str) -> tuple[float, float]:
    """The largest rounding difference between two computations of a score: nats, and nats per nat of the score.

    Below fp32 a score depends on the other pairs of its batch.
    """
    return {"fp64": (1e-9, 1e-11), "fp32": (1e-3, 1e-6)}.get(numerics.partition("-from-")[0], (0.1, 1e-2))
