"""The common form of objectives on pairs: a loss that is composed of parts."""

import functools
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.base import Faithfulness, Family, Objective
from lit_pref.objectives.combining import (
    beta_objections,
    extra_response_objections,
    margin_warnings,
    reference_objections,
    score_objections,
    target_objections,
    term_warnings,
)
from lit_pref.objectives.component import call_text
from lit_pref.objectives.parts.link import Link, Logistic
from lit_pref.objectives.parts.offset import NoOffset, Offset
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.parts.reference import MixOutput, ReferenceMix, Single
from lit_pref.objectives.parts.score import Identity, Score
from lit_pref.objectives.parts.target import Hard, Target, entropy
from lit_pref.objectives.parts.temperature import Constant, Temperature, TemperatureOutput
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.parts.tokens import Sum, TokenSum
from lit_pref.objectives.parts.weight import NoWeight, Weight
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import Strengths
from lit_pref.scores import ObjectiveOutput, PairScores

PARTS = ("reference", "temperature", "target", "link", "tokens", "score", "offset", "weight")


class Pairwise(Objective):
    """A loss on pairs that is composed of parts.

        L_i = omega_i link(x_i, p_i) + sum_j c_j A_j,i
        x_i = beta_i (phi(h_w) - phi(h_l)) - o_i,        h_y = log pi(y) - log pi~(y)

    Each part is chosen separately; with all defaults the loss is DPO. The same parts train a reward model with
    `reference: NoReference` and `beta: 1`: its score takes the place of log pi.

    Rewards are beta_i phi(h_y). Logged for every pair: `logits` (x), `beta`, `target` (p, clamped to [0, 1]),
    `target_entropy` (nats), `kl_to_target` (the link's loss minus that entropy, if this is a KL divergence), `weight`
    (omega, if it can differ from 1), and values of the parts. The `repr` prints the arguments as given to the subclass,
    so beta may have a paper's own name there and its value before a subclass rescales it; `beta` in the log is the
    value used.

    >>> from lit_pref.objectives.parts.target import MarginTarget
    >>> Pairwise(beta=0.05, target=MarginTarget(gamma=2.2)).target
    MarginTarget(gamma=2.2)

    **When**: as the base class of a method of one's own. To combine methods in a configuration, take `DPO` or the
    method nearest to the combination: it names itself in logs and tables.

    **Source**: own formulation; each part and each method names its paper.

    Args:
        beta: > 0, reward units per nat; 1 for a reward model.
        reference: how K reference scores become one; default `Single`.
        temperature: beta of every pair; default `Constant`.
        target: the probability p that the chosen response is better; default `Hard`.
        link: the loss of a logit; default `Logistic`.
        tokens: how token log-probs become the score of a response; default `Sum`.
        score: phi; default `Identity`.
        offset: o; default `NoOffset`.
        weight: omega; default `NoWeight`.
        terms: further losses, each with its coefficient; default none.

    Raises:
        UsageError: beta is not a positive number, or the parts cannot be combined.
    """

    faithfulness: Faithfulness = "derived"
    family: Family = "basic"

    def __init__(
        self,
        beta: float = 0.1,
        reference: ReferenceMix | None = None,
        temperature: Temperature | None = None,
        target: Target | None = None,
        link: Link | None = None,
        tokens: TokenSum | None = None,
        score: Score | None = None,
        offset: Offset | None = None,
        weight: Weight | None = None,
        terms: list[Term] | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.reference = reference or Single()
        self.temperature = temperature or Constant()
        self.target = target or Hard()
        self.link = link or Logistic()
        self.tokens = tokens or Sum()
        self.score = score or Identity()
        self.offset = offset or NoOffset()
        self.weight = weight or NoWeight()
        self.terms = nn.ModuleList(terms or [])
        self.batch_coupled = self.temperature.batch_coupled
        for objection in self._objections():
            raise UsageError(f"{type(self).__name__}: {objection}")
        for warning in self._warnings():
            warnings.warn(f"{type(self).__name__}: {warning}", stacklevel=2)

    # Cached, because every step needs it and the parts never change.
    @cached_property
    def requirements(self) -> Requirements:
        return functools.reduce(operator.or_, (part.requirements for part in self._parts()))

    def log_prob_parts(self) -> list[str]:
        own = [type(self).__name__] if self.log_probs_only else []
        return own + [type(part).__name__ for part in self._parts() if part.reads_log_probs]

    def fit(self, strengths: Strengths) -> list[str]:
        return [line for part in self._parts() for line in part.fit(strengths)]

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        scores = self.tokens(policy, policy, pairs)
        with torch.no_grad():
            own = [self.tokens(reference, policy, pairs) for reference in references]
            mix = self.reference(own, scores)
            temperature = self.temperature(self.beta, _ratios(scores, mix[0]), policy, references, pairs)
        if "kept" in vars(self.temperature):
            raise UsageError(
                f"{type(self.temperature).__name__} sets `kept`, which is not read: return the kept pairs as the third "
                "value of TemperatureOutput"
            )
        return self.compare(scores, mix, TemperatureOutput(*temperature), policy, references, pairs)

    def compare(
        self,
        scores: Sides,
        mix: MixOutput,
        temperature: TemperatureOutput,
        policy: PairScores,
        references: Sequence[PairScores],
        pairs: PairData,
    ) -> ObjectiveOutput:
        """Return the losses of the policy against one reference score of each response.

        Args:
            scores: the policy's scores of both responses, each (B,), with gradient.
            mix: the reference's scores of both responses, each (B,), and values to log.
            temperature: beta of every pair, (B,), values to log, and which pairs enter the loss. It is an input
                because computing it moves its state, once for each batch.
            policy: the scores and statistics of the policy, for the parts.
            references: those of the K references, unmixed, for the terms.
            pairs: the B pairs.
        """
        mixed, mix_log = mix
        beta, beta_log, kept = temperature
        ratios = _ratios(scores, mixed)
        with torch.no_grad():
            target = self.target(policy, pairs)
        weight = self.weight(policy, pairs)
        if not self.weight.differentiable:
            weight = weight.detach()
        chosen, rejected = self.score(ratios)
        logits = beta * (chosen - rejected) - self.offset(policy, pairs)
        preference = self.link(logits, target, beta)
        rewards: Sides = (beta * chosen, beta * rejected)
        losses, term_log = weight * preference, dict[str, Tensor]()
        for term in self._terms():
            losses = losses + term.coefficient * term(beta, rewards, policy, references, pairs)
            term_log |= term.log(policy, references)
        if kept is not None:
            # Training takes the mean over all real pairs, so this makes it the mean over those that are kept.
            losses = losses * kept.to(losses) * (pairs.is_real.sum().to(losses) / kept.sum().clamp_min(1))

        weight_log = {} if self.weight.uniform else {"weight": weight}
        part_logs = {**weight_log, **beta_log, **mix_log, **self.score.log(ratios), **term_log}
        logged = {"logits": logits, "beta": beta, **self._fit_log(preference, target), **part_logs}
        return ObjectiveOutput(
            losses=losses,
            chosen_rewards=rewards[0].detach(),
            rejected_rewards=rewards[1].detach(),
            logged={name: value.detach() for name, value in logged.items()},
        )

    def _fit_log(self, preference: Tensor, target: Tensor) -> dict[str, Tensor]:
        probability = target.clamp(0, 1)
        logged = {"target": probability, "target_entropy": entropy(probability)}
        if self.link.cross_entropy and self.target.proper:
            logged["kl_to_target"] = preference - logged["target_entropy"]
        return logged

    def update(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        self.temperature.update(self.beta, all_reduce)

    @property
    def progress(self) -> dict[str, float]:
        return self.temperature.progress(self.beta)

    def __repr__(self) -> str:
        given = self.arguments
        beta = {"beta": given.pop("beta")} if "beta" in given else {}
        parts = {name: getattr(self, name) if given.get(name) is None else given[name] for name in PARTS}
        own = {name: value for name, value in given.items() if name not in PARTS and name != "terms"}
        return call_text(self, {**beta, **own, **parts, "terms": self._terms()})

    def _terms(self) -> list[Term]:
        return cast(list[Term], list(self.terms))

    def _parts(self) -> Iterator[Part]:
        return (module for module in self.modules() if isinstance(module, Part))

    def _objections(self) -> Iterator[str]:
        """Reasons why these parts cannot be combined."""
        parts = list(self._parts())
        yield from beta_objections(self.beta, self.temperature, self.link)
        yield from reference_objections(parts, self.reference, self.score)
        yield from score_objections(parts, self.tokens, self.score, self.temperature)
        yield from target_objections(self.target, self.link, self.score)
        yield from extra_response_objections(parts)

    def _warnings(self) -> Iterator[str]:
        """Reasons to doubt this combination of parts."""
        yield from margin_warnings(self.target, self.offset)
        yield from term_warnings(self._terms(), self.target)


def _ratios(scores: Sides, references: Sides) -> Sides:
    return scores[0] - references[0], scores[1] - references[1]
