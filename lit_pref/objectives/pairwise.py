"""The common form of an objective: a loss of pairs made of parts."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.base import Faithfulness, Objective, call_text, constructor_values
from lit_pref.objectives.parts.link import Link, Logistic, ReverseKL, Squared
from lit_pref.objectives.parts.offset import MarginOffset, NoOffset, Offset
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.parts.reference import Harmonic, NoReference, ReferenceMix, Single
from lit_pref.objectives.parts.score import Identity, Score
from lit_pref.objectives.parts.target import Hard, MarginTarget, Target, entropy
from lit_pref.objectives.parts.temperature import Constant, EpsilonStep, Temperature
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.parts.tokens import Sum, TokenSum
from lit_pref.objectives.parts.weight import NoWeight, Weight
from lit_pref.pairs import Strengths, TokenFunction
from lit_pref.scores import Need, ObjectiveOutput, PairScores

PARTS = ("reference", "temperature", "target", "link", "tokens", "score", "offset", "weight")


class Pairwise(Objective):
    """A loss of pairs made of parts.

        L_i = omega_i link(x_i, p_i) + sum_j c_j A_j,i
        x_i = beta_i (phi(h_w) - phi(h_l)) - o_i,        h_y = log pi(y) - log pi~(y)

    Every part is chosen on its own; left out, all of them together are DPO. A reward model is trained by the same parts
    with `reference: NoReference` and `beta: 1`: its scalar takes the place of log pi.

    Rewards are beta_i phi(h_y). Logged for every pair: `logits` (x), `beta`, `target` (p, held in [0, 1]),
    `target_entropy` (nats), `kl_to_target` (the link's loss minus that entropy, where it is a KL divergence),
    and what the parts log.

    >>> from lit_pref.objectives.parts.target import MarginTarget
    >>> Pairwise(beta=0.05, target=MarginTarget(gamma=2.2)).target
    MarginTarget(gamma=2.2)

    **Source**: own formulation; each part and each method names its paper.

    Args:
        beta: > 0, reward units per nat; 1 for a reward model.
        reference: one reference score out of K; default `Single`.
        temperature: a rule on beta; default `Constant`.
        target: the probability p that the chosen response is better; default `Hard`.
        link: the loss of a logit; default `Logistic`.
        tokens: how token log-probs become the score of a response; default `Sum`.
        score: phi; default `Identity`.
        offset: o; default `NoOffset`.
        weight: omega; default `NoWeight`.
        terms: further losses with their coefficients; default none.

    Raises:
        UsageError: beta is not a positive number, or parts that cannot be combined.
    """

    faithfulness: Faithfulness = "derived"

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
        for objection in self._objections():
            raise UsageError(f"{type(self).__name__}: {objection}")
        if isinstance(self.offset, MarginOffset) and isinstance(self.target, MarginTarget):
            warnings.warn(
                f"{type(self).__name__}: the margin acts twice, in MarginTarget and in MarginOffset, "
                "and the data cannot tell the two strengths apart.",
                stacklevel=2,
            )

    @property
    def min_references(self) -> int:
        return max(self.reference.min_references, self.temperature.min_references)

    @property
    def max_references(self) -> int | None:
        return self.reference.max_references

    # Asked for in every step, and parts stay what they are.
    @cached_property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.needs for part in self._parts()))

    @cached_property
    def reference_needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.reference_needs for part in self._parts()))

    @property
    def required(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.required for part in self._parts()))

    @property
    def token_functions(self) -> Mapping[str, TokenFunction]:
        return {name: function for part in self._parts() for name, function in part.token_functions.items()}

    @property
    def token_columns(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.token_columns for part in self._parts()))

    @property
    def fit_inputs(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.fit_inputs for part in self._parts()))

    def fit(self, strengths: Strengths) -> list[str]:
        return [line for part in self._parts() for line in part.fit(strengths)]

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        scores = self.tokens(policy, policy, pairs)
        with torch.no_grad():
            own = [self.tokens(reference, policy, pairs) for reference in references]
            mixed, mix_log = self.reference(own, scores)
        ratios: Sides = (scores[0] - mixed[0], scores[1] - mixed[1])
        with torch.no_grad():
            beta, beta_log = self.temperature(self.beta, ratios, policy, references, pairs)
            target = self.target(policy, pairs)
            weight = self.weight(policy, pairs)
        chosen, rejected = self.score(ratios)
        logits = beta * (chosen - rejected) - self.offset(policy, pairs)
        preference = self.link(logits, target, beta)
        rewards: Sides = (beta * chosen, beta * rejected)
        losses = weight * preference
        for term in self.terms:
            losses = losses + term.coefficient * term(policy, rewards, pairs)

        logged = {"logits": logits, "beta": beta, **self._fit_log(preference, target), **beta_log, **mix_log}
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
        parts = {name: getattr(self, name) for name in PARTS}
        return call_text(self, {"beta": self.beta, **constructor_values(self), **parts, "terms": list(self.terms)})

    def _parts(self) -> Iterator[Part]:
        return (module for module in self.modules() if isinstance(module, Part))

    def _objections(self) -> Iterator[str]:
        """Why these parts cannot be combined: the one place where parts meet."""
        score, step = type(self.score).__name__, self.temperature
        unreferenced = isinstance(self.reference, NoReference)
        if not (math.isfinite(self.beta) and self.beta > 0):
            yield f"beta must be a positive, finite number, got {self.beta}."
        if isinstance(step, EpsilonStep):
            cure = "or `temperature: Constant`."
            if unreferenced:
                yield f"EpsilonStep compares the policy with a reference: choose another than `NoReference`, {cure}"
            if not isinstance(self.tokens, Sum):
                yield f"EpsilonStep compares sums of log-probs, not another aggregation: choose `tokens: Sum`, {cure}"
            if not self.score.reverse_kl:
                yield f"EpsilonStep perturbs beta of the reverse KL, not of {score}: choose `score: Identity`, {cure}"
            if not (step.minimum or 0) <= self.beta <= (math.inf if step.maximum is None else step.maximum):
                yield f"beta {self.beta} lies outside EpsilonStep's minimum and maximum: change beta or the bounds."
        if isinstance(self.link, Squared) and not isinstance(step, Constant):
            yield (
                "Squared divides by beta squared, so that a beta that varies would weigh the pairs: "
                "choose `temperature: Constant`, or `link: Logistic`."
            )
        if isinstance(self.reference, Harmonic) and not isinstance(self.tokens, Sum):
            yield (
                "Harmonic's window is a share of the summed log-prob, and no meaningful width for another aggregation: "
                "choose `tokens: Sum`, or `reference: Geometric`."
            )
        if unreferenced and self.score.of_a_ratio:
            yield (
                f"{score} is a function of the ratio to a reference and NoReference has none: "
                "choose another reference, or `score: Identity`."
            )
        if not (self.score.same_on_both_sides or self.target.hard):
            yield (
                f"{score} treats chosen and rejected differently, so that l(-x) is not the loss of the exchanged pair, "
                "which a target other than 1 needs: choose `target: Hard`, or another score."
            )
        if isinstance(self.link, ReverseKL) and (self.target.hard or not self.target.proper):
            yield (
                "ReverseKL is infinite where the target is 1 and undefined beyond: "
                "choose `target: Smoothed` (EXO: epsilon 0.001) or `MarginTarget`, or `link: Logistic`."
            )
