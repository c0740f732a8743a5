import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    DPO,
    MMPO,
    MRPO,
    AlphaDivergence,
    Anchor,
    ChosenNLL,
    ConstantOffset,
    ConstantWeight,
    EpsilonDPO,
    EpsilonStep,
    ForwardKL,
    Geometric,
    Harmonic,
    Hinge,
    JensenShannon,
    LengthOffset,
    MarginOffset,
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
from lit_pref.objectives.parts.temperature import Temperature
from lit_pref.objectives.parts.weight import Weight
from lit_pref.scores import Tilt

EVERYTHING = {"target": MarginTarget(0.7), "reference": Harmonic(0.2), "temperature": EpsilonStep(0.05)}


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_no_positive_number_is_refused(beta):
    with pytest.raises(UsageError, match=f"DPO: beta must be a positive, finite number, got {beta}"):
        DPO(beta=beta)


class Doubled(Temperature):
    def forward(self, beta, ratios, policy, references, batch):
        return torch.full_like(ratios[0], 2 * beta), {}


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            {"temperature": EpsilonStep(), "reference": NoReference()},
            "EpsilonStep needs a reference and NoReference takes none: choose another part than EpsilonStep or than N",
        ),
        (
            {"temperature": EpsilonStep(), "tokens": Mean()},
            "EpsilonStep compares sums of log-probs, not another aggregation: choose `tokens: Sum`",
        ),
        (
            {"temperature": EpsilonStep(), "score": JensenShannon()},
            "EpsilonStep perturbs beta of the reverse KL, not of another divergence: choose `score: Identity`",
        ),
        (
            {"temperature": EpsilonStep(), "link": Squared()},
            "Squared divides by beta squared, .*: choose `temperature: Constant`",
        ),
        ({"temperature": Doubled(), "link": Squared()}, "Squared divides by beta squared"),
        ({"reference": Harmonic(), "tokens": Mean()}, "Harmonic clips .*: choose `tokens: Sum`, or .*Geometric"),
        (
            {"reference": NoReference(), "score": ForwardKL()},
            "ForwardKL is a function of the ratio .* NoReference has none: .* `score: Identity`",
        ),
        ({"reference": NoReference(), "score": OneSided()}, "OneSided is a function of the ratio"),
        (
            {"score": OneSided(), "target": MarginTarget()},
            "OneSided treats chosen and rejected differently, .*: choose `target: Hard`",
        ),
        ({"score": OneSided(), "target": Smoothed(0.1)}, "OneSided treats chosen and rejected differently"),
        ({"link": ReverseKL()}, "ReverseKL is infinite if the target is 1 .*: choose `target: Smoothed`"),
        ({"link": ReverseKL(), "target": Smoothed(0.0)}, "ReverseKL is infinite"),
        ({"link": ReverseKL(), "target": Unbiased(0.1)}, "ReverseKL is infinite"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_reason_and_remedy(parts, sentence):
    with pytest.raises(UsageError, match="^Pairwise: " + sentence):
        Pairwise(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"score": OneSided(), "temperature": EpsilonStep()},
        {"score": OneSided(), "reference": Harmonic()},
        {"score": OneSided(), "target": Smoothed(0.0)},
        {"link": ReverseKL(), "target": ProbabilityColumn()},
        {"link": Squared(), "target": MarginTarget(), "reference": Harmonic()},
        {"tokens": Mean(), "reference": Geometric()},
        {"tokens": Mean(), "score": AlphaDivergence()},
    ],
)
def test_what_can_be_combined_is_not_refused(make, parts):
    objective = Pairwise(**parts)
    assert bool(make.random(objective).into(objective).losses.isfinite().all())


def test_a_margin_that_acts_twice_is_warned_of():
    with pytest.warns(UserWarning, match="MMPO: the margin is used twice, in MarginTarget and in MarginOffset"):
        MMPO(offset=MarginOffset())


def test_the_repr_shows_every_part_with_its_values():
    assert repr(DPO()) == (
        "DPO(beta=0.1, reference=Single(), temperature=Constant(), target=Hard(), link=Logistic(), tokens=Sum(), "
        "score=Identity(), offset=NoOffset(), weight=NoWeight(), terms=[])"
    )
    text = repr(EpsilonDPO(epsilon=0.02, target=MarginTarget(math.inf), terms=[ChosenNLL(0.5), Anchor()]))
    assert text.startswith("EpsilonDPO(beta=0.01, epsilon=0.02, first_order=False, harmonic=False, ")
    assert "temperature=EpsilonStep(epsilon=0.02, " in text
    assert "target=MarginTarget(gamma=inf)" in text
    assert text.endswith("terms=[ChosenNLL(coefficient=0.5), Anchor(coefficient=1.0)])")


def test_a_subclass_shows_its_own_numbers_too():
    class Cautious(Pairwise):
        faithfulness = "reconstruction"

        def __init__(self, patience: int = 3, **parts):
            super().__init__(**parts)
            self.patience = patience

    assert repr(Cautious(patience=4)) == repr(Pairwise()).replace("Pairwise", "Cautious").replace(
        "beta=0.1", "beta=0.1, patience=4"
    )


@pytest.mark.parametrize(
    "objective",
    [
        DPO(beta=0.3, **EVERYTHING),
        MMPO(beta=0.3, gamma=0.7, reference=Harmonic(0.2), temperature=EpsilonStep(0.05)),
        MRPO(beta=0.3, eta=0.2, target=MarginTarget(0.7), temperature=EpsilonStep(0.05)),
        EpsilonDPO(beta=0.3, epsilon=0.05, target=MarginTarget(0.7), reference=Harmonic(0.2)),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_three_methods_compose_into_one_loss_whichever_of_them_is_named(make, objective):
    assert (objective.requirements.min_references, objective.requirements.max_references) == (1, None)
    assert objective.requirements.statistics == {Tilt(0.05), Tilt(-0.05)}
    assert objective.requirements.columns == {"margin"}
    inputs = make.random(objective, size=8, references=3)
    output = inputs.into(objective)

    # Written out once more, from the three papers.
    margin, policy = inputs.pairs.margin, inputs.policy
    (mixed_chosen, mixed_rejected), _ = Harmonic(0.2)(
        [(r.chosen.scores, r.rejected.scores) for r in inputs.references], None
    )

    def gap(values):
        return values(policy.chosen) - values(policy.rejected)

    now = gap(lambda side: side.scores)
    minus, plus = gap(lambda side: side.statistics[Tilt(0.05)]), gap(lambda side: side.statistics[Tilt(-0.05)])
    step = ((minus > 0) & (plus < 0)).double() - ((minus < 0) & (plus > 0)).double()
    assert set(step.tolist()) >= {0.0, 1.0} or set(step.tolist()) >= {0.0, -1.0}
    x = 0.3 / (1 + 0.05 * step) * (now - (mixed_chosen - mixed_rejected))
    p = 1 / (1 + torch.exp(-0.7 * margin))
    expected = -p * torch.log(torch.sigmoid(x)) - (1 - p) * torch.log(torch.sigmoid(-x))
    torch.testing.assert_close(output.losses, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        DPO(),
        DPO(**EVERYTHING),
        DPO(reference=NoReference(), tokens=Mean(), offset=ConstantOffset(0.5), terms=[ChosenNLL(0.3)]),
        DPO(link=Squared(), tokens=Mean(), target=MarginTarget()),
        DPO(link=ReverseKL(), target=ProbabilityColumn(), offset=LengthOffset()),
        DPO(score=ForwardKL(), beta=0.01, reference=Geometric([1, 3])),
        DPO(score=JensenShannon(), target=Unbiased(0.2)),
        DPO(score=OneSided(), terms=[Anchor(0.7)]),
        DPO(score=AlphaDivergence(0.3), link=Hinge()),
    ],
    ids=repr,
)
def test_the_gradient_is_that_of_finite_differences(make, objective):
    inputs = make.random(objective, size=4, references=2 if objective.requirements.max_references != 1 else None)
    inputs.references = inputs.references[: objective.requirements.max_references]

    def losses(chosen, rejected):
        inputs.policy.chosen.scores, inputs.policy.rejected.scores = chosen, rejected
        return inputs.into(objective.eval()).losses

    assert torch.autograd.gradcheck(losses, (inputs.policy.chosen.scores, inputs.policy.rejected.scores))


class Likely(Weight):
    def forward(self, policy, batch):
        return policy.chosen.scores.exp()


def test_a_weight_made_of_the_policy_s_scores_is_a_constant(make):
    inputs = make.g0()
    chosen = inputs.policy.chosen.scores.requires_grad_()
    inputs.into(DPO(weight=Likely())).losses.sum().backward()
    # exp(-12) times the gradient of DPO, and no derivative of the weight
    assert chosen.grad.item() == pytest.approx(-math.exp(-12) * 0.1 / (1 + math.exp(0.15)), rel=1e-12)


class Trained(Likely):
    differentiable = True


def test_a_differentiable_weight_has_a_gradient_too(make):
    inputs = make.g0()
    chosen = inputs.policy.chosen.scores.requires_grad_()
    inputs.into(DPO(weight=Trained())).losses.sum().backward()
    # (w l)' = w l' + w' l with w = w' = exp(-12)
    expected = math.exp(-12) * (-0.1 / (1 + math.exp(0.15)) + 0.6209570477895321)
    assert chosen.grad.item() == pytest.approx(expected, rel=1e-12)


def test_a_constant_weight_weighs_the_preference_loss_and_not_the_terms(make):
    loss = make.g0().into(DPO(weight=ConstantWeight(0.5), terms=[ChosenNLL(2.0)])).losses.item()
    assert loss == pytest.approx(0.5 * 0.6209570477895321 + 2.0 * 12 / 10, abs=1e-14)


def test_only_a_mixture_of_several_references_logs_weights_and_the_first_margin(make):
    plain = {"logits", "beta", "target", "target_entropy", "kl_to_target"}
    assert set(make.random(DPO()).into(DPO()).logged) == plain
    several = MRPO(temperature=EpsilonStep())
    assert set(make.random(several, references=2).into(several).logged) == plain | {
        "epsilon_step",
        "clipped",
        "reference_weights/0",
        "reference_weights/1",
    }
