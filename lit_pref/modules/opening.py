"""What has to be in the store before a run reads a reference from it, and computing what is not."""

import gc
import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UserError
from lit_pref.models.encoding import Encoding
from lit_pref.models.prefix_sharing import prefix_sharing_obstacle
from lit_pref.modules.distributed import gather_objects, refuse, shard
from lit_pref.modules.seen_pairs import Split, seen_pairs
from lit_pref.pairs import PreferencePair
from lit_pref.references.addresses import ExtraResponses, Pairs, address_table, in_own_ids
from lit_pref.references.filling import Ranks, StoreFiller, load
from lit_pref.references.own_tokenizer import same_tokenizer
from lit_pref.references.reference import Pretrained
from lit_pref.references.store import Identity, ReferenceStore, Scores
from lit_pref.references.stored import LazyScorer, Stored
from lit_pref.references.wanted import Array, NeededScores
from lit_pref.scores import TokenLogps
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import Scorer

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


def to_open(module: "PreferenceModule", stage: str) -> list["ReferencePreparation"]:
    """What is to be read of each stored reference; see `references.open_references`."""
    references = [(k, reference) for k, reference in enumerate(module.references) if isinstance(reference, Stored)]
    if not references:
        return []
    splits = seen_pairs(module, stage)
    return [
        ReferencePreparation.of(module, reference, f"reference {k} ({reference.label})", splits)
        for k, reference in references
    ]


@dataclass
class ReferencePreparation:
    """One stored reference, what is wanted of it, and how what is missing is computed.

    Args:
        module: with its Trainer.
        reference: to be opened.
        label: what lines call it.
        splits: (pairs, which of them) of each split.
        encoding: of the reference's own tokenizer; None where it reads the policy's tokens.
        store: of its scores.
        table: (pairs,) `addresses.TABLE` of all splits, one after another.
        wanted: the responses in it.
    """

    module: "PreferenceModule"
    reference: Stored
    label: str
    splits: Sequence[tuple[Pairs, Array]]
    encoding: Encoding | None
    store: ReferenceStore
    table: Any
    wanted: NeededScores

    @classmethod
    def of(cls, module: "PreferenceModule", reference: Stored, label: str, seen: list[Split]) -> "ReferencePreparation":
        source, policy_tokenizer = reference.source, module.policy.load_tokenizer()
        own = source.load_tokenizer()
        tokenizer = None if own is policy_tokenizer or same_tokenizer(own, policy_tokenizer) else own
        if tokenizer is not None and TokenLogps() in module.objective.reference_needs:
            raise UserError(
                f"the objective compares single tokens with those of the reference '{reference.label}', which has a "
                "tokenizer of its own: take a reference with the policy's tokenizer"
            )
        splits: list[tuple[Pairs, Array]] = [*seen]
        if "extra_response" in module.objective.sides:
            splits += [(ExtraResponses(pairs), which) for pairs, which in seen]
        tables = [address_table(pairs, tokenizer, say)[which] for pairs, which in splits]
        table = np.concatenate(tables)
        encoding = None if tokenizer is None else Encoding(tokenizer)
        opening = cls(module, reference, label, splits, encoding, _store(module, reference), table, NeededScores(table))
        opening._refuse_too_long()
        return opening

    def fill(self) -> NeededScores:
        """Compute what is missing; the scores of all that is wanted.

        Raises:
            UserError: Something is missing that only another process has.
        """
        self.store.open()
        trainer = self.module.trainer
        terminal = sys.stdout.isatty() and trainer.is_global_zero
        ranks = None
        if isinstance(trainer.strategy, ModelParallelStrategy):
            strategy = trainer.strategy
            ranks = Ranks(trainer.global_rank, trainer.world_size, strategy.broadcast, strategy.barrier)
        score = partial(self._score, self._weights())
        wanted = self.wanted
        if StoreFiller(self.store, wanted, score, self.label, say, terminal, ranks).run():
            del score  # and the weights with it
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            # Read as every later run will: of what was computed twice, the first stands.
            wanted = NeededScores(self.table)
            load(self.store, wanted, set())
        if missing := sum(gather_objects(trainer, wanted.missing)):
            refuse(
                trainer,
                f"{missing} scores of the reference '{self.reference.label}' are not in {self.store.folder}, where "
                "another process was to put them: processes that share a reference must share LIT_PREF_CACHE",
            )
        return wanted

    def differences(self, rows: int, seed: int) -> tuple[Array, Array]:
        """Stored scores of up to `rows` pairs drawn by chance, and the same computed again; (2 x rows,) each, nats."""
        load(self.store, self.wanted, set())
        everything = np.arange(len(self.wanted.pairs))
        held = np.setdiff1d(everything, self.wanted.lacking(everything))
        drawn = np.random.default_rng(seed).permutation(held)[:rows]
        if not len(drawn):
            return np.empty(0), np.empty(0)
        weights = self._weights()
        # One by one: in other company than that of the block, which is a part of what is compared.
        again = np.concatenate([self._score(weights, drawn[k : k + 1]).scores for k in range(len(drawn))])
        stored = self.wanted.pairs[drawn].reshape(-1)
        return self.wanted.scores[stored[stored >= 0]], again

    def _weights(self) -> LazyScorer:
        trainer = self.module.trainer
        needs = self.module.objective.reference_needs & {TokenLogps()}
        follows = not isinstance(self.reference.reference, Pretrained)
        # Under `bf16-true` the context is for models that were rounded to it; others keep the dtype they were given.
        context = trainer.precision_plugin.forward_context if follows or _mixed(trainer) else nullcontext
        layout = layout_of(self.module, self.reference)
        return LazyScorer(self.reference.source, self._place, context, frozenset(needs), layout)

    def _place(self, scorer: Scorer) -> Scorer:
        strategy = self.module.trainer.strategy
        if not isinstance(self.reference.reference, Pretrained):
            # The policy's own weights, rounded as the policy's are; others keep the dtype that they were given.
            scorer = self.module.trainer.precision_plugin.convert_module(scorer)  # type: ignore[assignment]
        if isinstance(strategy, ModelParallelStrategy):
            shard(scorer, strategy)
        return scorer.to(strategy.root_device)

    def _score(self, weights: LazyScorer, pairs: Array) -> Scores:
        tokenizer = self.module.policy.load_tokenizer() if self.encoding is None else self.encoding.tokenizer
        # Only their ids: numbers that the pairs of one split have, those of the other may not.
        bare: dict[str, Any] = {"margin": None, "probability": None, "columns": {}, "token_columns": {}}
        own = [replace(self._pair(int(self.wanted.first[pair])), **bare) for pair in pairs]
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        scores = weights.score(collate(own, pad_id, layout=weights.layout), self.module.trainer.strategy.root_device)
        if not np.isfinite(scores.scores).all():
            response = int(np.flatnonzero(~np.isfinite(scores.scores))[0])  # first the chosen ones, then the others
            raise UserError(
                f"{own[response % len(own)].place}: {self.label} gives a response of this pair the score "
                f"{scores.scores[response]}: check its weights, or give it a larger dtype"
            )
        return scores

    def _pair(self, at: int) -> PreferencePair:
        """The pair of one row of the table, in the reference's ids."""
        for pairs, which in self.splits:
            if at < len(which):
                pair = pairs[int(which[at])]
                return pair if self.encoding is None else in_own_ids(pair, self.encoding)
            at -= len(which)
        raise IndexError(at)

    def _refuse_too_long(self) -> None:
        limit = None if self.encoding is None else self.reference.source.max_length()
        if limit is not None and len(self.table) and (longest := int(self.table["tokens"].max())) > limit:
            pair = self._pair(int(self.table["tokens"].argmax()))
            raise UserError(
                f"{pair.place} has {longest} tokens for the reference '{self.reference.label}', which reads at most "
                f"{limit}: lower data.max_length"
            )


def _store(module: "PreferenceModule", reference: Stored) -> ReferenceStore:
    source = reference.source
    fingerprint = reference.fingerprint()
    if source.path is None:
        # What a seed draws is theirs to decide.
        drawn_by = [fingerprint, *(importlib.metadata.version(name) for name in ("torch", "transformers"))]
        fingerprint = hashlib.sha256(" ".join(drawn_by).encode()).hexdigest()
    aggregation = "tokens" if TokenLogps() in module.objective.reference_needs else "sum"
    return ReferenceStore(Identity(fingerprint, numerics(module, reference), aggregation, source.describe()))


def layout_of(module: "PreferenceModule", reference: Stored) -> Layout:
    """In which the reference reads what the store lacks: the run's, where that model can."""
    shares = module.batch_layout == "prefix_shared" and prefix_sharing_obstacle(reference.source) is None
    return "prefix_shared" if shares else "padded"


ROUNDED = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}
"""To what Lightning rounds a policy under these precisions."""


def _mixed(trainer: Trainer) -> bool:
    return str(trainer.precision) not in {"32-true", *ROUNDED}


def numerics(module: "PreferenceModule", reference: Stored) -> str:
    """`fp32` or `fp64` where weights and computation are that; below, all that the numbers depend on."""
    precision, source = str(module.trainer.precision), reference.source
    follows = not isinstance(reference.reference, Pretrained)
    dtype = ROUNDED.get(precision, source.dtype) if follows else source.dtype
    mixed = _mixed(module.trainer)
    matmul = torch.get_float32_matmul_precision()
    # LazyScorer that were rounded on their way are others.
    rounded = "" if dtype == source.dtype else f"-from-{source.dtype}"
    if dtype == "float64":  # autocast leaves it alone
        return "fp64" + rounded
    if dtype == "float32" and not mixed and matmul == "highest":
        return "fp32" + rounded
    computed = precision if mixed else "fp32" if dtype == "float32" else dtype
    weights = "" if dtype == "float32" or not mixed else f"-{dtype}"
    # The head multiplies in fp32 also where the model does not.
    coarse = "" if matmul == "highest" else f"-matmul-{matmul}"
    how = (module.trainer.strategy.root_device.type, layout_of(module, reference), source.attention or "default")
    return "/".join([f"{computed}{weights}{rounded}{coarse}", *how])


@rank_zero_only
def say(line: str) -> None:
    """Print a line, once for all ranks."""
    print(line, flush=True)
