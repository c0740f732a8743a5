"""The loss before the first step, next to what it must be, and what each reference alone says."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.commands.check.findings import Finding, Severity, percent
from lit_pref.references.reference import AdapterOff, InitialPolicy
from lit_pref.references.stored import Stored
from lit_pref.scores import PairScores, SequenceScores
from lit_pref.scoring.layout import as_padded
from lit_pref.scoring.scorer import evaluating

if TYPE_CHECKING:
    from lit_pref.commands.check.probes import Probe

CLOSE = {torch.float64: 1e-8, torch.float32: 2e-3}
"""What the mean loss may differ by, absolutely and as a share of it; 0.05 below fp32, where scores are coarse."""
COARSE_LOSS = 0.05


def first_loss(probe: "Probe") -> Iterator[Finding]:
    """The mean loss over the pairs as a run computes it, and as it must be.

    Where the policy is its only reference every log-ratio is 0, and the loss is that of the objective there: ln 2 with
    a logistic link and no offset, whatever the targets are. Elsewhere the policy is read the plain way, each response
    by itself, without dropout, through the model's own logits, and the objective is given these scores.
    """
    module = probe.module
    itself = _is_itself(probe)
    actual: list[Tensor] = []
    expected: list[Tensor] = []
    targets: list[Tensor] = []
    logged: dict[str, list[Tensor]] = {}
    for batch, policy, references, output in probe.outputs:
        actual.append(output.losses)
        known = policy if itself else _plainly(probe, batch, policy)
        expected.append(module.objective(known, [known] if itself else references, batch.pairs).losses)
        for name, values in output.logged.items():
            if name.startswith(("reference_weights/", "clipped")):
                logged.setdefault(name, []).append(values)
        targets += [output.logged["target"]] if "target" in output.logged else []
    found, must = (float(torch.cat(losses).double().mean()) for losses in (actual, expected))
    allowed = CLOSE.get(probe.dtype, COARSE_LOSS)
    fits = math.isfinite(found) and abs(found - must) <= allowed * max(1.0, abs(must))
    severity: Severity = "ok" if fits else "stop"
    why = "the policy is its own reference" if itself else "by the policy's own logits, response by response"
    value = "ln 2 = 0.6931" if abs(must - math.log(2)) < 1e-4 else f"{must:.4f}"
    words = f"the first loss over {len(probe.pairs)} pairs is {found:.4f} nats and must be {value} ({why})"
    words += "" if fits else ": policy and references are not what they are taken for"
    numbers: dict[str, Any] = {"actual": found, "expected": must, "policy_is_reference": itself}
    numbers |= {"pairs": len(probe.pairs)}
    numbers |= {"mean_target": float(torch.cat(targets).mean())} if targets else {}
    yield Finding("first_loss", severity, words, numbers=numbers)
    if logged:
        yield _mixture({name: float(torch.cat(values).double().mean()) for name, values in logged.items()})


def _mixture(means: dict[str, float]) -> Finding:
    weights = [value for name, value in sorted(means.items()) if name.startswith("reference_weights/")]
    words = "the references weigh " + ", ".join(f"{weight:.2f}" for weight in weights) + " in the mean"
    if "clipped" in means:
        words += f", and {percent(means['clipped'])} of the others' scores sit at the edge of the anchor's window"
    alone = max(weights, default=0.0) > 0.99 and len(weights) > 1
    words += ": one of them is the mixture all by itself" if alone else ""
    numbers = {"weights": weights, "clipped": means.get("clipped")}
    return Finding("mixture", "note" if alone or means.get("clipped", 0.0) > 0.5 else "ok", words, numbers=numbers)


def references_alone(probe: "Probe") -> Iterator[Finding]:
    """How often the policy and each reference find the chosen response likelier; a tie is half."""
    if probe.module.objective.sides == ("chosen",):
        return
    names = ["the policy", *(f"reference {k} ({r.label})" for k, r in enumerate(probe.module.references))]
    gaps: list[list[Tensor]] = [[] for _ in names]
    for _, policy, references, _ in probe.outputs:
        for gap, scores in zip(gaps, [policy, *references], strict=True):
            gap.append(scores.chosen.scores - scores.rejected.scores)  # type: ignore[union-attr]
    for name, gap in zip(names, gaps, strict=True):
        every = torch.cat(gap).double()
        accuracy = float(((every > 0) + 0.5 * (every == 0)).mean())
        words = f"{name} finds the chosen response likelier in {percent(accuracy)} of {len(every)} pairs, by "
        words += f"{float(every.median()):.4g} nats in the median"
        numbers = {"what": name, "accuracy": accuracy, "median_nats": float(every.median()), "pairs": len(every)}
        yield Finding("alone", "ok", words, numbers=numbers)


def _is_itself(probe: "Probe") -> bool:
    """Whether the one reference is the policy before its first step."""
    references = [r.reference if isinstance(r, Stored) else r for r in probe.module.references]
    if len(references) != 1:
        return False
    return isinstance(references[0], InitialPolicy | AdapterOff)


@torch.no_grad()
def _plainly(probe: "Probe", batch: PreferenceBatch, scores: PairScores) -> PairScores:
    """The same scores, the sums from the model's own logits; further statistics stay as they are."""
    rows = as_padded(batch).rows
    model = probe.scorer.model
    sums = []
    with evaluating(model), probe.module.trainer.precision_plugin.forward_context():
        for row in range(len(rows.input_ids)):
            mine = rows.sequences == row
            assert rows.attention_mask is not None
            width = int(rows.attention_mask[row].sum())
            logits = model(input_ids=rows.input_ids[row : row + 1, :width], use_cache=False).logits[0]
            places = rows.predictors[mine] - row * rows.input_ids.shape[1]
            logps = logits[places].to(scores.chosen.scores.dtype).log_softmax(-1)
            sums.append(logps.gather(1, rows.targets[mine][:, None]).sum())
    all_sums = torch.stack(sums)

    def side(own: SequenceScores | None, values: Tensor) -> SequenceScores | None:
        return None if own is None else replace(own, scores=values)

    b = len(batch)
    return replace(scores, chosen=side(scores.chosen, all_sums[:b]), rejected=side(scores.rejected, all_sums[b:]))  # type: ignore[arg-type]
