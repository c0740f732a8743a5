"""What can be known of policy and references before a run: they are built and score a few pairs."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.commands.check.findings import Finding, Severity
from lit_pref.commands.check.first_loss import first_loss, references_alone
from lit_pref.commands.check.memory import Devices, memory
from lit_pref.commands.check.numbers import evenly
from lit_pref.commands.score import COARSE, TOLERANCE
from lit_pref.data.batching.collation import collate
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.references.prepare import prepare_references
from lit_pref.references.stored import Stored
from lit_pref.scores import ObjectiveOutput, PairScores, TokenLogps
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import evaluating

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule

PAIRS, COMPARED, TOGETHER = 64, 16, 8
"""Pairs that are scored, how many of them in other ways too, and how many at once."""
SAME = (1e-5, 1e-6)
"""What two readings of the same batch may differ by, nats and nats per nat: sums of other order on a GPU."""
PER_TOKEN = {torch.float64: 1e-8, torch.float32: 1e-3}
"""What a token's log-prob may differ by between layouts, nats; below fp32 their mean may by `COARSE_PER_TOKEN`."""
COARSE_PER_TOKEN = 0.05


def model_findings(module: "PreferenceModule", devices: Devices) -> list[Finding]:
    """Build the models of a run and compare what they say of up to PAIRS training pairs.

    Args:
        module: with its Trainer, whose data are prepared.
        devices: of the run.

    Raises:
        UserError: a model cannot be built, or cannot score what it is to score.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    if not len(data.train_pairs):
        return []
    probe = Probe(module, evenly(len(data.train_pairs), PAIRS))
    stored = list(probe.open_stored())
    probe.build()
    findings = [*probe.twice(), *stored, *probe.layouts(), *first_loss(probe), *references_alone(probe)]
    return [*findings, memory(probe, devices)]


class Probe:
    """The models of a run and a few of its pairs.

    Args:
        module: with its Trainer, whose data are prepared.
        indices: of the training pairs that are looked at.
    """

    def __init__(self, module: "PreferenceModule", indices: Sequence[int]) -> None:
        self.module, self.indices = module, list(indices)
        self.data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
        self.pairs = [self.data.train_pairs[k] for k in indices]
        self.device = module.trainer.strategy.root_device

    def open_stored(self) -> Iterator[Finding]:
        """Have the store hold the scores of these pairs, and compute some of them again."""
        splits = [(self.data.train_pairs, np.array(self.indices))]
        module = self.module
        for preparation in prepare_references(
            module.references, module.policy, module.objective, splits, module.run_context
        ):
            preparation.open()
            stored, again = preparation.differences(COMPARED // 2, seed=0)
            allowed = TOLERANCE.get(preparation.store.identity.numerics.partition("-from-")[0], COARSE)
            yield _same(preparation.label, f"its stored scores and {len(again)} computed again", stored, again, allowed)

    def build(self) -> None:
        """The policy as a run builds it, and its live references, on the device."""
        module = self.module
        plugin = module.trainer.precision_plugin
        with plugin.module_init_context():
            module.configure_model()
        if self.prefix_sharing_obstacle is None:
            enable_prefix_sharing(module.scorer.model)  # type: ignore[union-attr]
        module.scorer = cast(Any, plugin.convert_module(module.scorer)).to(self.device)  # type: ignore[arg-type]
        module.objective.to(self.device).eval()
        for reference in module.references:
            reference.to(self.device)

    @cached_property
    def prefix_sharing_obstacle(self) -> str | None:
        return prefix_sharing_obstacle(self.module.policy)

    @property
    def scorer(self) -> Any:
        return self.module.scorer

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores' computation: that of the weights, or less under autocast."""
        precision = str(self.module.trainer.precision)
        if precision in ("bf16-mixed", "16-mixed"):
            return torch.bfloat16 if precision.startswith("bf16") else torch.float16
        return next(p.dtype for p in self.scorer.parameters() if p.dtype.is_floating_point)

    def batches(self, most: int, layout: Layout | None = None) -> Iterator[PreferenceBatch]:
        """The first pairs, a few at a time, in the run's layout or another."""
        tokenizer, objective = self.module.policy.load_tokenizer(), self.module.objective
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        for start in range(0, min(most, len(self.pairs)), TOGETHER):
            yield collate(
                self.pairs[start : start + TOGETHER],
                pad,
                layout=layout or self.module.batch_layout,
                token_functions=objective.token_functions,
                extra_response="extra_response" in objective.sides,
            ).to(self.device)

    @cached_property
    def outputs(self) -> list[tuple[PreferenceBatch, PairScores, list[PairScores], ObjectiveOutput]]:
        """What a run's first step computes of all pairs, batch by batch."""
        with torch.no_grad(), self.module.trainer.precision_plugin.forward_context():
            return [(batch, *self.module.scores(batch)) for batch in self.batches(PAIRS)]

    @torch.no_grad()
    def policy_scores(self, layout: Layout | None = None, tokens: bool = False) -> list[Tensor]:
        """Scores of all responses, or the log-probs of all their tokens, in fp64 on the CPU, batch by batch."""
        needs = frozenset({TokenLogps()}) if tokens else frozenset()
        found = []
        for batch in self.batches(COMPARED, layout):
            with self.module.trainer.precision_plugin.forward_context():
                scores = self.scorer(batch, needs)
            found.append(_flat(scores, tokens))
        return found

    @torch.no_grad()
    def reference_scores(self, k: int) -> list[Tensor]:
        """Scores of all responses by a live reference."""
        found = []
        for batch in self.batches(COMPARED):
            with self.module.trainer.precision_plugin.forward_context():
                scores = self.module.references[k].score(batch)
            found.append(_flat(scores, False))
        return found

    # Findings

    def twice(self) -> Iterator[Finding]:
        """Policy and live references, each read twice."""
        first, second = (torch.cat(self.policy_scores()).numpy() for _ in range(2))
        finding = _same("policy", "two readings of the same pairs", first, second, SAME)
        policy = self.module.policy
        if finding.severity != "ok" and (policy.dropout or (policy.lora is not None and policy.lora.dropout)):
            with evaluating(self.scorer):
                first, second = (torch.cat(self.policy_scores()).numpy() for _ in range(2))
            still = _same("policy", "two readings without dropout", first, second, SAME)
            words = f"{finding.says}: dropout is on, so that policy and reference differ from the first step"
            finding = Finding("twice", "warning", words, numbers=finding.numbers) if still.severity == "ok" else still
        yield finding
        for k, reference in enumerate(self.module.references):
            if not isinstance(reference, Stored):
                first, second = (torch.cat(self.reference_scores(k)).numpy() for _ in range(2))
                yield _same(f"reference {k} ({reference.label})", "two readings of the same pairs", first, second, SAME)

    def layouts(self) -> Iterator[Finding]:
        """The padded and the shared layout, token by token."""
        if self.prefix_sharing_obstacle is not None:
            words = f"layout padded, and nothing to compare it with: {self.prefix_sharing_obstacle}"
            yield Finding("layouts", "ok", words, numbers={"shared": False})
            return
        with evaluating(self.scorer):
            both = [torch.cat(self.policy_scores(layout, tokens=True)) for layout in ("padded", "prefix_shared")]
        apart = (both[0] - both[1]).abs()
        largest, mean = float(apart.max()), float(apart.mean())
        allowed = PER_TOKEN.get(self.dtype)
        fits = largest <= allowed if allowed is not None else mean <= COARSE_PER_TOKEN
        severity: Severity = "ok" if fits else "stop"
        words = (
            f"log-probs of {len(apart)} tokens in the padded and the shared layout differ by at most {largest:.1e} nats"
        )
        words += f" ({mean:.1e} in the mean; allowed: "
        words += f"{allowed:g})" if allowed is not None else f"{COARSE_PER_TOKEN:g} in the mean)"
        words += "" if fits else ": set model.layout to padded, and report this with the policy's architecture"
        numbers = {"shared": True, "tokens": len(apart), "largest": largest, "mean": mean}
        yield Finding("layouts", severity, words, numbers=numbers)


def _same(name: str, what: str, first: Any, second: Any, allowed: tuple[float, float]) -> Finding:
    """Whether two arrays of scores are the same."""
    apart = np.abs(np.asarray(first) - np.asarray(second))
    base, share = allowed
    finite = bool(np.isfinite(first).all() and np.isfinite(second).all())
    fits = finite and bool((apart <= base + share * np.abs(first)).all())
    largest = float(apart.max(initial=0.0)) if finite else float("nan")
    words = f"{name}: {what} differ by at most {largest:.1e} nats"
    if not finite:
        words = f"{name}: scores are not finite"
    elif not fits:
        words += ": they should be the same, something in it is left to chance"
    return Finding("twice", "ok" if fits else "stop", words, numbers={"what": name, "largest": largest})


def _flat(scores: PairScores, tokens: bool) -> Tensor:
    """Of both sides one after the other, less what pads them."""
    found = []
    for side in (scores.chosen, scores.rejected):
        if side is None:
            continue
        values = side.scores
        if tokens:
            logps = side.statistics[TokenLogps()]
            places = torch.arange(logps.shape[1], device=logps.device)
            values = logps[places < side.lengths[:, None]]
        found.append(values)
    return torch.cat(found).double().cpu()
