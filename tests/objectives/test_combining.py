"""Combinations of the shipped parts that are refused, with the reason and the nearest valid choice."""

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    AlphaDivergence,
    BatchAdaptive,
    ClippedGeometric,
    ColumnTemperature,
    ColumnTokens,
    DropPenalty,
    EditWeighted,
    EpsilonStep,
    ForwardKL,
    Geometric,
    Hard,
    Harmonic,
    Hinge,
    ImplicitRewards,
    JensenShannon,
    MarginTarget,
    Mean,
    NoReference,
    OneSided,
    Pairwise,
    ProbabilityColumn,
    ReverseKL,
    Smoothed,
    Squared,
    Unbiased,
)

INVALID = [
    ({"temperature": EpsilonStep(), "reference": NoReference()}, "needs a reference"),
    ({"temperature": EpsilonStep(), "score": ForwardKL()}, "choose `score: Identity`"),
    ({"temperature": EpsilonStep(), "tokens": Mean()}, "choose `tokens: Sum`"),
    ({"temperature": EpsilonStep(), "tokens": EditWeighted(2.0)}, "choose `tokens: Sum`"),
    *(
        ({"temperature": temperature, "link": Squared()}, "choose `temperature: Constant`")
        for temperature in (EpsilonStep(), BatchAdaptive(), ColumnTemperature("trust"))
    ),
    *(
        ({"reference": reference, "tokens": tokens}, "choose `tokens: Sum`, or `reference: Geometric`")
        for reference in (Harmonic(), ClippedGeometric())
        for tokens in (Mean(), ColumnTokens("spans"), EditWeighted(2.0))
    ),
    *(
        ({"score": score, "target": target}, "choose `target: Hard`")
        for score in (OneSided(), DropPenalty())
        for target in (MarginTarget(), Smoothed(0.1), ProbabilityColumn(), Unbiased(0.1))
    ),
    *(
        ({"score": score, "reference": NoReference()}, "choose another reference, or `score: Identity`")
        for score in (ForwardKL(), JensenShannon(), AlphaDivergence(), OneSided(), DropPenalty())
    ),
    *(({"link": ReverseKL(), "target": target}, "choose `target: Smoothed`") for target in (Hard(), Unbiased(0.1))),
]
"""Combinations of our own parts without a meaning, each with the reason or remedy that the user gets."""


@pytest.mark.parametrize(
    ("parts", "sentence"), INVALID, ids=[" ".join(map(repr, parts.values())) for parts, _ in INVALID]
)
def test_a_combination_without_a_meaning_is_refused_with_the_nearest_valid_choice(parts, sentence):
    with pytest.raises(UsageError, match="choose") as caught:
        Pairwise(**parts)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        *({"temperature": EpsilonStep(), "reference": mix} for mix in (Geometric(), ImplicitRewards([0.5]))),
        {"temperature": BatchAdaptive(), "reference": NoReference(), "tokens": Mean(), "link": Hinge()},
        {"temperature": BatchAdaptive(), "score": JensenShannon(), "reference": ClippedGeometric()},
        {"score": DropPenalty(), "reference": ImplicitRewards([0.5]), "tokens": Mean()},
        {"score": DropPenalty(), "temperature": EpsilonStep(), "target": Unbiased(0.0)},
        {"link": ReverseKL(), "target": MarginTarget(), "temperature": BatchAdaptive(), "reference": Harmonic()},
    ],
    ids=lambda parts: " ".join(map(repr, parts.values())),
)
def test_what_has_a_meaning_is_not_refused(make, parts):
    objective = Pairwise(**parts)
    inputs = make.random(objective)
    assert bool(inputs.into(objective).losses.isfinite().all())
