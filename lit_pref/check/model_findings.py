"""Findings about policy and references: reproducible scores, equal layouts, the expected first loss, and memory."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.check.devices import Devices
from lit_pref.check.memory import memory
from lit_pref.check.probe import PAIRS, Probe
from lit_pref.check.report import Finding, Severity
from lit_pref.check.statistics import evenly
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.modules.base import PairModule
from lit_pref.pages.html import percent
from lit_pref.printing import say
from lit_pref.references.prepare import tolerance_of
from lit_pref.references.reference import AdapterOff, InitialPolicy
from lit_pref.references.stored import Stored
from lit_pref.scores import PairScores, SequenceScores
from lit_pref.scoring.layout import as_padded
from lit_pref.scoring.scorer import evaluating

SAME = (1e-5, 1e-6)
"""Allowed difference between two passes over one batch, absolute in nats and relative: a GPU may reorder sums."""
PER_TOKEN = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Allowed difference of a token's log-prob between the layouts, in nats."""
COARSE_PER_TOKEN = 0.05
"""Allowed difference below fp32, in nats, for the mean over tokens."""
CLOSE = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Allowed difference between the mean loss and its expected value, absolute and relative."""
COARSE_LOSS = 0.05
"""The same below fp32."""


def model_findings(module: PairModule, devices: Devices) -> list[Finding]:
    """Build the models of a run and check their scores of up to `PAIRS` training pairs.

    Args:
        module: a module that is attached to its Trainer, with prepared data.
        devices: the run's devices.

    Raises:
        UserError: a model cannot be built, or cannot score the pairs.
    """
    data = module.data
    if not len(data.train_pairs):
        return []
    probe = Probe(module, _probed(data.train_pairs))
    say(f"building the models and scoring {len(probe.pairs)} training pairs ...")
    stored = list(stored_scores(probe))
    probe.build()
    findings = [*repeated_passes(probe), *stored, *layouts(probe), *first_loss(probe), *accuracies(probe)]
    return [*findings, memory(probe, devices)]


def _probed(pairs: PairView) -> list[int]:
    """Return the indices of up to `PAIRS` training pairs, or of whole lists with about as many responses."""
    if pairs.lists is None:
        return evenly(len(pairs), PAIRS)
    most = max(1, int(PAIRS / pairs.lists.sizes.mean()))
    return list(pairs.lists.records(evenly(len(pairs.lists), most)).tolist())


# Reproducible scores


def stored_scores(probe: Probe) -> Iterator[Finding]:
    """Compare stored scores with the same scores computed again, after computing the missing ones."""
    for preparation, stored, again in probe.open_stored():
        allowed = tolerance_of(preparation.store.identity.numerics)
        what = f"{len(again)} stored scores and the same scores computed again"
        yield _same(preparation.label, what, stored, again, allowed)


def repeated_passes(probe: Probe) -> Iterator[Finding]:
    """Compare two passes of the policy and of each live reference."""
    name = "policy" if probe.module.spec.outputs is None else "reward model"
    first, second = (probe.policy_scores().numpy() for _ in range(2))
    finding = _same(name, "two passes over the same pairs", first, second, SAME)
    policy = probe.module.spec
    if finding.severity != "ok" and (policy.dropout or (policy.lora is not None and policy.lora.dropout)):
        with evaluating(probe.scorer):
            first, second = (probe.policy_scores().numpy() for _ in range(2))
        without = _same(name, "two passes without dropout", first, second, SAME)
        words = f"{name}: two passes differ by up to {finding.numbers['largest']:.1e}{probe.unit} because dropout is "
        words += "on" + (", so policy and reference differ before training" if probe.unit else "")
        words += "; set dropout to 0 to avoid that"
        finding = Finding("twice", "warning", words, numbers=finding.numbers) if without.severity == "ok" else without
    yield finding
    for k, reference in enumerate(probe.module.references):
        if not isinstance(reference, Stored):
            first, second = (probe.reference_scores(k).numpy() for _ in range(2))
            yield _same(f"reference {k} ({reference.label})", "two passes over the same pairs", first, second, SAME)


def _same(name: str, what: str, first: Any, second: Any, allowed: tuple[float, float]) -> Finding:
    """Whether two arrays of scores are equal within a tolerance, absolute and relative."""
    apart = np.abs(np.asarray(first) - np.asarray(second))
    base, share = allowed
    finite = bool(np.isfinite(first).all() and np.isfinite(second).all())
    fits = finite and bool((apart <= base + share * np.abs(first)).all())
    largest = float(apart.max(initial=0.0)) if finite else float("nan")
    words = f"{name}: {what} differ by at most {largest:.1e}"
    if not finite:
        words = f"{name}: some scores are not finite"
    elif not fits:
        words += ", but should be equal: something in the model is random"
    return Finding("twice", "ok" if fits else "stop", words, numbers={"what": name, "largest": largest})


def layouts(probe: Probe) -> Iterator[Finding]:
    """Compare the log-probs of all tokens in the padded and in the prefix-shared layout."""
    if probe.prefix_sharing_obstacle is not None:
        words = f"the model supports only the padded layout: {probe.prefix_sharing_obstacle}"
        yield Finding("layouts", "ok", words, numbers={"shared": False})
        return
    with evaluating(probe.scorer):
        padded, shared = (
            probe.policy_scores(layout, tokens=probe.token_need is not None) for layout in ("padded", "prefix_shared")
        )
    apart = (padded - shared).abs()
    largest, mean = float(apart.max()), float(apart.mean())
    allowed = PER_TOKEN.get(probe.dtype)
    fits = largest <= allowed if allowed is not None else mean <= COARSE_PER_TOKEN
    what = "log-probs" if probe.unit else "rewards"
    what = f"the {what} of {len(apart)} {'tokens' if probe.token_need is not None else 'responses'}"
    words = f"{what} differ by at most {largest:.1e}{probe.unit} between the padded and the "
    words += f"prefix-shared layout (mean {mean:.1e}, "
    words += f"allowed {allowed:g})" if allowed is not None else f"allowed mean {COARSE_PER_TOKEN:g})"
    words += "" if fits else ": set model.layout to padded, and report this with the policy's architecture"
    numbers = {"shared": True, "tokens": len(apart), "largest": largest, "mean": mean}
    yield Finding("layouts", "ok" if fits else "stop", words, numbers=numbers)


# Losses and accuracies


def first_loss(probe: Probe) -> Iterator[Finding]:
    """Compare the mean loss before the first step, computed as in training, with its expected value.

    If the policy is its only reference, every log-ratio is 0, and the objective gives the expected loss there: ln 2 for
    a logistic link without offset, whatever the targets are. Otherwise the objective gives it for policy scores taken
    from the model's own logits, one response at a time and without dropout.
    """
    module = probe.module
    itself = _is_own_reference(probe)
    actual: list[Tensor] = []
    expected: list[Tensor] = []
    targets: list[Tensor] = []
    logged: dict[str, list[Tensor]] = {}
    for batch, policy, references, output in probe.outputs:
        actual.append(output.losses)
        known = policy if itself else _own_scores(probe, batch, policy)
        expected.append(module.objective(known, [known] if itself else references, batch.pairs).losses)
        for name, values in output.logged.items():
            if name.startswith(("reference_weights/", "clipped")):
                logged.setdefault(name, []).append(values)
        targets += [output.logged["target"]] if "target" in output.logged else []
    found, must = (float(torch.cat(losses).double().mean()) for losses in (actual, expected))
    allowed = CLOSE.get(probe.dtype, COARSE_LOSS)
    fits = math.isfinite(found) and abs(found - must) <= allowed * max(1.0, abs(must))
    severity: Severity = "ok" if fits else "stop"
    own = "policy's logits" if probe.unit else "reward model's own forward"
    why = "the policy is its own reference" if itself else f"from the {own}, one response at a time"
    value = "ln 2 = 0.6931" if abs(must - math.log(2)) < 1e-4 else f"{must:.4f}"
    words = f"the mean loss of {len(probe.pairs)} pairs before training is {found:.4f} nats; expected: {value} ({why})"
    words += "" if fits else ": the scores of the model or of references are wrong"
    numbers: dict[str, Any] = {"actual": found, "expected": must, "policy_is_reference": itself}
    numbers |= {"pairs": len(probe.pairs)}
    numbers |= {"mean_target": float(torch.cat(targets).mean())} if targets else {}
    yield Finding("first_loss", severity, words, numbers=numbers)
    if logged:
        yield _mixture({name: float(torch.cat(values).double().mean()) for name, values in logged.items()})


def _mixture(means: dict[str, float]) -> Finding:
    """The mean weights of several references, and the share of scores clipped around the anchor's score."""
    weights = [value for name, value in sorted(means.items()) if name.startswith("reference_weights/")]
    words = "the mean weights of the references are " + ", ".join(f"{weight:.2f}" for weight in weights)
    if "clipped" in means:
        words += f"; {percent(means['clipped'])} of the others' scores are clipped to the interval around the anchor's"
    alone = max(weights, default=0.0) > 0.99 and len(weights) > 1
    words += ": in effect there is one reference" if alone else ""
    numbers = {"weights": weights, "clipped": means.get("clipped")}
    return Finding("mixture", "note" if alone or means.get("clipped", 0.0) > 0.5 else "ok", words, numbers=numbers)


def accuracies(probe: Probe) -> Iterator[Finding]:
    """The share of pairs in which the policy, or a reference, scores the chosen response higher; a tie counts half."""
    if probe.module.objective.requirements.sides == ("chosen",):
        return
    names = [
        "the policy" if probe.unit else "the reward model",
        *(f"reference {k} ({r.label})" for k, r in enumerate(probe.module.references)),
    ]
    gaps: list[list[Tensor]] = [[] for _ in names]
    for _, policy, references, _ in probe.outputs:
        for gap, scores in zip(gaps, [policy, *references], strict=True):
            gap.append(scores.chosen.scores - scores.rejected.scores)  # type: ignore[union-attr]
    for name, gap in zip(names, gaps, strict=True):
        every = torch.cat(gap).double()
        accuracy = float(((every > 0) + 0.5 * (every == 0)).mean())
        words = f"{name} scores the chosen response higher in {percent(accuracy)} of {len(every)} pairs; the median "
        words += f"difference is {float(every.median()):.4g}{probe.unit}"
        numbers = {"what": name, "accuracy": accuracy, "median_nats": float(every.median()), "pairs": len(every)}
        yield Finding("alone", "ok", words, numbers=numbers)


def _is_own_reference(probe: Probe) -> bool:
    """Whether the policy before its first step is the only reference."""
    references = [r.reference if isinstance(r, Stored) else r for r in probe.module.references]
    if len(references) != 1:
        return False
    return isinstance(references[0], InitialPolicy | AdapterOff)


@torch.no_grad()
def _own_scores(probe: Probe, batch: PreferenceBatch, scores: PairScores) -> PairScores:
    """Replace the scores by those of the model's own forward, one response at a time; other statistics are kept.

    Those of a policy are sums over its logits. A preference embedding has none of its own, and keeps the scores.
    """
    if probe.module.spec.embedding is not None:
        return scores
    rows = as_padded(batch).rows
    model = probe.scorer.model
    sums = []
    with evaluating(model), probe.module.trainer.precision_plugin.forward_context():
        for row in range(len(rows.input_ids)):
            mine = rows.sequences == row
            assert rows.attention_mask is not None
            width = int(rows.attention_mask[row].sum())
            logits = model(input_ids=rows.input_ids[row : row + 1, :width], use_cache=False).logits[0]
            if not probe.unit:
                sums.append(logits.squeeze().to(scores.chosen.scores.dtype))
                continue
            places = rows.predictors[mine] - row * rows.input_ids.shape[1]
            logps = logits[places].to(scores.chosen.scores.dtype).log_softmax(-1)
            sums.append(logps.gather(1, rows.targets[mine][:, None]).sum())
    all_sums = torch.stack(sums)

    def side(own: SequenceScores | None, values: Tensor) -> SequenceScores | None:
        return None if own is None else replace(own, scores=values)

    b = len(batch)
    return replace(scores, chosen=side(scores.chosen, all_sums[:b]), rejected=side(scores.rejected, all_sums[b:]))  # type: ignore[arg-type]
