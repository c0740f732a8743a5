"""The models of a run, built to score a few of its training pairs."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.modules.base import PairModule
from lit_pref.references.prepare import ReferencePreparation, prepare_references
from lit_pref.scores import Need, ObjectiveOutput, PairScores, TokenLogps, TokenRewards
from lit_pref.scoring.layout import Layout

PAIRS, COMPARED, BATCH = 64, 16, 8
"""Numbers of pairs: in the probe, scored more than once, and in a batch."""


class Probe:
    """The models of a run and a few of its training pairs.

    Args:
        module: a module that is attached to its Trainer, with prepared data.
        indices: the indices of the training pairs to score.
    """

    def __init__(self, module: PairModule, indices: Sequence[int]) -> None:
        self.module, self.indices = module, list(indices)
        self.data = module.data
        self.pairs = [self.data.train_pairs[k] for k in indices]
        lists = self.data.train_pairs.lists
        self._lists = None if lists is None else np.searchsorted(lists.starts, self.indices, side="right")
        self.device = module.trainer.strategy.root_device

    def open_stored(self) -> Iterator[tuple[ReferencePreparation, np.ndarray, np.ndarray]]:
        """Compute the missing scores of each stored reference and load those of the probe's pairs.

        Yields:
            The preparation of the reference, some stored scores, and the same scores computed again.
        """
        splits = [(self.data.train_pairs, np.array(self.indices))]
        module = self.module
        for preparation in prepare_references(
            module.references, module.spec, module.objective, splits, module.run_context
        ):
            preparation.open()
            stored, again = preparation.differences(COMPARED // 2, seed=0)
            yield preparation, stored, again

    def build(self) -> None:
        """Build the policy as training does, and move it and the live references to the device."""
        module = self.module
        plugin = module.trainer.precision_plugin
        with plugin.module_init_context():
            module.configure_model()
        if self.prefix_sharing_obstacle is None:
            enable_prefix_sharing(module.scorer.model)
        module.scorer = cast(Any, plugin.convert_module(module.scorer)).to(self.device)
        module.objective.to(self.device).eval()
        for reference in module.references:
            reference.to(self.device)

    @cached_property
    def prefix_sharing_obstacle(self) -> str | None:
        return prefix_sharing_obstacle(self.module.spec)

    @property
    def token_need(self) -> Need | None:
        """The statistic with one value for each token; a preference embedding has none."""
        spec = self.module.spec
        if spec.outputs is None:
            return TokenLogps()
        return TokenRewards() if spec.embedding is None else None

    @property
    def unit(self) -> str:
        """The unit of scores, to follow a number in a sentence; rewards have none."""
        return " nats" if self.module.spec.outputs is None else ""

    @property
    def scorer(self) -> Any:
        return self.module.scorer

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which scores are computed: that of the weights, or a lower one under autocast."""
        precision = str(self.module.trainer.precision)
        if precision in ("bf16-mixed", "16-mixed"):
            return torch.bfloat16 if precision.startswith("bf16") else torch.float16
        return next(p.dtype for p in self.scorer.parameters() if p.dtype.is_floating_point)

    def batches(self, most: int, layout: Layout | None = None) -> Iterator[PreferenceBatch]:
        """Collate the first `most` pairs into batches; each list of responses is one batch.

        Args:
            most: the number of pairs, rounded up to whole lists.
            layout: the layout of the rows; None takes the layout of the run.
        """
        tokenizer, objective = self.module.spec.load_tokenizer(), self.module.objective
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        numbers = np.arange(len(self.pairs)) // BATCH if self._lists is None else self._lists
        for number in dict.fromkeys(numbers[:most].tolist()):
            pairs = [self.pairs[k] for k in np.flatnonzero(numbers == number)]
            yield collate(
                pairs,
                pad,
                layout=layout or self.module.batch_layout,
                token_functions=objective.requirements.token_functions,
                extra_response="extra_response" in objective.requirements.sides,
                lists=None if self._lists is None else [0] * len(pairs),
            ).to(self.device)

    @cached_property
    def outputs(self) -> list[tuple[PreferenceBatch, PairScores, list[PairScores], ObjectiveOutput]]:
        """Policy scores, reference scores and objective output of every batch, as in the first optimizer step."""
        with torch.no_grad(), self.module.trainer.precision_plugin.forward_context():
            return [(batch, *self.module.scores(batch)) for batch in self.batches(PAIRS)]

    @torch.no_grad()
    def policy_scores(self, layout: Layout | None = None, tokens: bool = False) -> Tensor:
        """Policy scores of all responses, in fp64 on the CPU.

        Args:
            layout: the layout of the rows; None takes the layout of the run.
            tokens: return the log-probs, or the rewards, of all tokens instead.
        """
        need = self.token_need if tokens else None
        found = []
        for batch in self.batches(COMPARED, layout):
            with self.module.trainer.precision_plugin.forward_context():
                scores = self.scorer(batch, frozenset() if need is None else frozenset({need}))
            found.append(_flat(scores, need))
        return torch.cat(found)

    @torch.no_grad()
    def reference_scores(self, k: int) -> Tensor:
        """Scores of all responses under the live reference `k`, in fp64 on the CPU."""
        found = []
        for batch in self.batches(COMPARED):
            with self.module.trainer.precision_plugin.forward_context():
                scores = self.module.references[k].score(batch)
            found.append(_flat(scores, None))
        return torch.cat(found)


def _flat(scores: PairScores, need: Need | None) -> Tensor:
    """Concatenate the scores, or a statistic of the tokens without padding, of both sides."""
    found = []
    for side in (scores.chosen, scores.rejected):
        if side is None:
            continue
        values = side.scores
        if need is not None:
            tokens = side.statistics[need]
            places = torch.arange(tokens.shape[1], device=tokens.device)
            values = tokens[places < side.lengths[:, None]]
        found.append(values)
    return torch.cat(found).double().cpu()
