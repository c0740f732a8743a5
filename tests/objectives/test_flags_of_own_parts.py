"""A user's own parts obey the rules on combinations, by their flags."""

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    DPO,
    MMPO,
    SELM,
    SFT,
    Anchor,
    ChosenNLL,
    ColumnOffset,
    ColumnTemperature,
    ColumnTokens,
    EpsilonStep,
    Harmonic,
    LengthOffset,
    MarginOffset,
    Mean,
    NoReference,
    Objective,
    Pairwise,
    Requirements,
)
from lit_pref.objectives.parts.link import MarginLink
from lit_pref.objectives.parts.offset import Offset
from lit_pref.objectives.parts.reference import ReferenceMix
from lit_pref.objectives.parts.score import Score
from lit_pref.objectives.parts.target import Target
from lit_pref.objectives.parts.temperature import Temperature
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.parts.tokens import TokenSum
from lit_pref.scores import TokenLogps


class Link(MarginLink):
    def loss(self, logits):
        return torch.exp(-logits)


class SteadyLink(Link):
    constant_beta_only = "SteadyLink divides by beta: choose `temperature: Constant`."


class SoftLink(Link):
    soft_targets_only = "SoftLink takes a logarithm: choose `target: Smoothed`."


class HardLink(Link):
    hard_targets_only = "HardLink does not read p: choose `target: Hard`."


class _Mix(ReferenceMix):
    def forward(self, references, policy):
        return references[0], {}


class _NoMix(_Mix):
    requirements = Requirements(max_references=0)


class _SumMix(_Mix):
    sums_only = "_SumMix counts in nats: choose `tokens: Sum`."


class Divergence(Score):
    def forward(self, ratios):
        return ratios


class Sideways(Divergence):
    symmetric = False


class Free(Divergence):
    needs_ratio = False


class OfMeans(Free):
    means_only = "OfMeans takes means: choose `tokens: Mean` with `reference: NoReference`."


class Half(Target):
    def forward(self, policy, pairs):
        return torch.full_like(policy.chosen.scores, 0.5)


class Improper(Half):
    proper = False


class SurelyOne(Half):
    hard = True


class Margins(Half):
    requirements = Requirements(columns=frozenset({"margin"}))


class MarginGap(Offset):
    requirements = Requirements(columns=frozenset({"margin"}))

    def forward(self, policy, pairs):
        return self.read("margin", policy, pairs)


class Rule(Temperature):
    def forward(self, beta, ratios, policy, references, pairs):
        return torch.full_like(ratios[0], beta), {}


class Steady(Rule):
    constant = True


class Bounded(Rule):
    minimum, maximum = 0.2, 0.4


class ReverseOnly(Rule):
    reverse_kl_only = "ReverseOnly tilts the policy: choose `score: Identity`."


class Two(Rule):
    requirements = Requirements(min_references=2)


class Tokens(TokenSum):
    def forward(self, scores, policy, pairs):
        return scores.chosen.scores, scores.rejected.scores


class SumTokens(Tokens):
    plain_sum = True
    log_probs_only = False


class MeanTokens(Tokens):
    plain_mean = True


class Statistical(Rule):
    requirements = Requirements(statistics=frozenset({TokenLogps()}))


class TokenTerm(Term):
    log_probs_only = True

    def forward(self, beta, rewards, policy, references, pairs):
        return rewards[0]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"link": SteadyLink(), "temperature": Rule()}, "SteadyLink divides by beta: choose `temperature: Constant`"),
        ({"link": SoftLink()}, "SoftLink takes a logarithm: choose `target: Smoothed`"),
        ({"link": SoftLink(), "target": SurelyOne()}, "SoftLink takes a logarithm"),
        ({"link": SoftLink(), "target": Improper()}, "SoftLink takes a logarithm"),
        ({"link": HardLink(), "target": Half()}, "HardLink does not read p: choose `target: Hard`"),
        ({"score": OfMeans(), "tokens": MeanTokens()}, "OfMeans takes means"),
        ({"score": OfMeans(), "reference": _NoMix()}, "OfMeans takes means"),
        ({"reference": _SumMix(), "tokens": Tokens()}, "_SumMix counts in nats: choose `tokens: Sum`"),
        ({"reference": Harmonic(), "tokens": Tokens()}, "Harmonic clips"),
        (
            {"reference": _NoMix(), "score": Divergence()},
            "Divergence is a function of the ratio .* and _NoMix has none",
        ),
        ({"reference": _NoMix(), "temperature": EpsilonStep()}, "EpsilonStep needs a reference and _NoMix takes none"),
        ({"temperature": Two()}, "Two needs 2 references and Single takes 1: choose another part than Two or than Sin"),
        ({"score": Sideways(), "target": Half()}, "Sideways treats chosen and rejected differently"),
        ({"temperature": Bounded()}, "beta 0.1 lies outside Bounded's minimum and maximum"),
        ({"temperature": ReverseOnly(), "score": Divergence()}, "ReverseOnly tilts the policy"),
        ({"temperature": EpsilonStep(), "score": Divergence()}, "EpsilonStep perturbs beta of the reverse KL"),
    ],
)
def test_a_part_of_ones_own_is_refused_by_its_flags(parts, sentence):
    with pytest.raises(UsageError, match="^Pairwise: " + sentence):
        Pairwise(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"link": SteadyLink(), "temperature": Steady()},
        {"link": SoftLink(), "target": Half()},
        {"link": HardLink(), "target": SurelyOne()},
        {"score": OfMeans(), "tokens": MeanTokens(), "reference": _NoMix()},
        {"reference": _SumMix(), "tokens": SumTokens()},
        {"reference": _NoMix(), "score": Free()},
        {"reference": _Mix(), "temperature": Two()},
        {"score": Sideways(), "target": SurelyOne()},
        {"temperature": Bounded(), "beta": 0.3},
        {"temperature": ReverseOnly()},
    ],
)
def test_the_flag_that_answers_it_allows_it(parts):
    objective = Pairwise(**parts)
    assert all(getattr(objective, name) is part for name, part in parts.items() if name != "terms")


def test_a_term_for_hard_targets_is_warned_of_beside_a_soft_one(recwarn):
    DPO(terms=[Anchor()])
    MMPO(terms=[ChosenNLL()])
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="MMPO: Anchor holds the chosen response up at full strength, .*`target: Hard`"
    ):
        MMPO(terms=[ChosenNLL(), Anchor()])
    own = type("OwnTerm", (TokenTerm,), {"hard_targets": "OwnTerm trusts the label."})
    with pytest.warns(UserWarning, match="DPO: OwnTerm trusts the label"):
        DPO(target=Half(), terms=[own()])


def test_a_margin_that_acts_twice_is_warned_of_whatever_the_parts_are_called():
    for offset in (MarginGap(), ColumnOffset("margin"), MarginOffset()):
        with pytest.warns(UserWarning, match=f"the margin is used twice, in Margins and in {type(offset).__name__}"):
            DPO(target=Margins(), offset=offset)


def test_the_parts_that_read_log_probs_are_named():
    assert DPO().log_prob_parts() == []
    assert MMPO(reference=NoReference(), beta=1.0, terms=[Anchor()], offset=LengthOffset()).log_prob_parts() == []
    assert DPO(temperature=ColumnTemperature("trust")).log_prob_parts() == []
    built = DPO(reference=NoReference(), tokens=Mean(), terms=[ChosenNLL(), Anchor(), TokenTerm()])
    assert built.log_prob_parts() == ["Mean", "ChosenNLL", "TokenTerm"]
    assert DPO(tokens=ColumnTokens("spans")).log_prob_parts() == ["ColumnTokens"]
    assert DPO(temperature=EpsilonStep()).log_prob_parts() == ["EpsilonStep"]
    # Statistics exist for log-probs only, and another aggregation of tokens is taken for one of log-probs.
    assert DPO(temperature=Statistical(), tokens=Tokens()).log_prob_parts() == ["Statistical", "Tokens"]
    assert SFT().log_prob_parts() == ["SFT"] and SELM().log_prob_parts() == ["Optimism"]


def test_an_objective_that_asks_for_statistics_reads_log_probs():
    class Peaked(Objective):
        requirements = Requirements(statistics=frozenset({TokenLogps()}))

        def forward(self, policy, references, pairs): ...

    class Plain(Peaked):
        requirements = Requirements()

    assert Peaked().log_prob_parts() == ["Peaked"] and Plain().log_prob_parts() == []


class OldTerm(Term):
    def forward(self, rewards, policy, pairs):
        return -rewards[0]


class OldLog(Term):
    def forward(self, beta, rewards, policy, references, pairs):
        return -rewards[0]

    def log(self, policy):
        return {}


class FurtherArguments(Term):
    def forward(self, *arguments, scale=1.0):
        return -scale * arguments[1][0]


def test_a_part_of_an_older_interface_is_refused_when_it_is_made():
    with pytest.raises(
        UsageError,
        match=r"^forward of OldTerm takes \(rewards, policy, pairs\), and objectives call that of a Term with "
        r"\(beta, rewards, policy, references, pairs\): give it these arguments",
    ):
        DPO(terms=[OldTerm()])
    with pytest.raises(UsageError, match=r"log of OldLog takes \(policy\), .* with \(policy, references\)"):
        OldLog()
    assert DPO(terms=[FurtherArguments(0.5)]).terms[0].coefficient == 0.5


class OldFilter(Temperature):
    def forward(self, beta, ratios, policy, references, pairs):
        self.kept = torch.ones(len(pairs), dtype=torch.bool)
        return torch.full((len(pairs),), beta), {}


def test_a_temperature_that_keeps_pairs_by_an_attribute_is_refused(make):
    with pytest.raises(UsageError, match="OldFilter sets `kept`, which is not read: return the kept pairs"):
        make.g0().into(DPO(temperature=OldFilter()))
