import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, IPO, MMPO, SELM, Anchor, EpsilonStep, Geometric, NoReference, Optimism

GOLDEN = [0.6856803052962774, 0.6956403055566902, 0.6782596763414485]


def three_pairs(make):
    inputs = make.inputs(
        make.pair([-10, -20, -5], [-12, -19, -9]),
        [make.pair([-11, -20.5, -5], [-11.5, -20, -6])],
        make.batch(3, margin=[4.0, 0.0, 0.5]),
    )
    inputs.policy.extra_response = make.side([-8.0, -9.0, -7.0])
    inputs.references[0].extra_response = make.side([-8.5, -8.0, -7.0])
    return inputs


def test_selm_has_the_golden_losses_and_lowers_the_references_own_response(make):
    inputs = three_pairs(make)
    inputs.policy.extra_response.scores.requires_grad_()
    output = inputs.into(SELM(beta=0.01, alpha=0.001))
    assert output.losses.tolist() == pytest.approx(GOLDEN, abs=1e-15)
    assert output.losses.mean().item() == pytest.approx(0.6865267623981387, abs=1e-15)
    # -log sigmoid(0.01 x 1.5) + 1e-5 x 0.5
    assert output.losses[0].item() == pytest.approx(math.log1p(math.exp(-0.015)) + 5e-6, abs=1e-15)
    assert output.logged["extra_response_change"].tolist() == [0.5, -1.0, 0.0]
    output.losses.sum().backward()
    # Positive: a step against the gradient makes the extra response less likely, and the same for every pair.
    assert inputs.policy.extra_response.scores.grad.tolist() == pytest.approx([1e-5] * 3, abs=1e-20)


def test_selm_without_exploration_is_dpo(make):
    inputs = make.random(SELM())
    assert torch.equal(inputs.into(SELM(beta=0.2, alpha=0.0)).losses, inputs.into(DPO(beta=0.2)).losses)


def test_the_gradient_is_that_of_finite_differences(make):
    objective = SELM(beta=0.3, alpha=0.5)
    inputs = make.random(objective, size=3)

    def losses(*scores):
        for name, value in zip(("chosen", "rejected", "extra_response"), scores, strict=True):
            getattr(inputs.policy, name).scores = value
        return inputs.into(objective).losses

    sides = (inputs.policy.chosen, inputs.policy.rejected, inputs.policy.extra_response)
    assert torch.autograd.gradcheck(losses, [own.scores for own in sides])


def test_the_other_parts_stay_open_and_the_term_takes_the_beta_of_its_pair(make):
    inputs = three_pairs(make)
    plain = inputs.into(MMPO(beta=0.01, gamma=0.5)).losses
    graded = inputs.into(SELM(beta=0.01, alpha=0.001, target=MMPO(gamma=0.5).target)).losses
    torch.testing.assert_close(
        graded - plain, torch.tensor([5e-6, -1e-5, 0.0], dtype=torch.float64), rtol=0, atol=1e-15
    )
    stepping = SELM(beta=0.01, alpha=2.0, temperature=EpsilonStep(0.5))
    inputs = make.random(stepping, size=8)
    output, without = inputs.into(stepping), inputs.into(SELM(beta=0.01, alpha=0.0, temperature=EpsilonStep(0.5)))
    assert len(output.logged["beta"].unique()) > 1
    expected = 2.0 * output.logged["beta"] * output.logged["extra_response_change"]
    torch.testing.assert_close(output.losses - without.losses, expected.detach(), rtol=0, atol=1e-14)


def test_the_extra_response_is_compared_with_the_first_reference_if_there_is_one(make):
    inputs = three_pairs(make)
    inputs.references = [inputs.references[0], make.pair([-1, -2, -3], [-1, -2, -3])]
    inputs.references[1].extra_response = make.side([-1.0, -1.0, -1.0])
    assert inputs.into(SELM(reference=Geometric())).logged["extra_response_change"].tolist() == [0.5, -1.0, 0.0]
    inputs.references = []
    assert inputs.into(SELM(reference=NoReference())).logged["extra_response_change"].tolist() == [-8.0, -9.0, -7.0]


def test_third_responses_that_are_missing_are_refused(make):
    inputs = three_pairs(make)
    inputs.references[0].extra_response = None
    with pytest.raises(ValueError, match="SELM reads the extra responses, the reference 0 has none"):
        inputs.into(SELM())
    inputs.policy.extra_response = None
    with pytest.raises(ValueError, match="SELM reads the extra responses, the policy has none"):
        inputs.into(SELM())


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_a_push_towards_the_reference_s_own_response_is_refused(alpha):
    with pytest.raises(UsageError, match=f"SELM: alpha weighs the exploration .*, got {alpha}"):
        SELM(alpha=alpha)


def test_optimism_is_a_term_of_any_objective(make):
    inputs = make.random(SELM(), size=6)
    own, term = SELM(beta=0.3, alpha=0.02, terms=[Anchor(0.5)]), DPO(beta=0.3, terms=[Anchor(0.5), Optimism(0.02)])
    assert torch.equal(inputs.into(own).losses, inputs.into(term).losses)
    plain, squared = inputs.into(IPO(tau=0.2)), inputs.into(IPO(tau=0.2, terms=[Optimism(0.5)]))
    change = squared.logged["extra_response_change"]
    expected = 0.5 * plain.logged["beta"] * change
    torch.testing.assert_close(squared.losses - plain.losses, expected, rtol=1e-9, atol=1e-9)
    assert IPO(terms=[Optimism()]).requirements.sides == SELM().requirements.sides
