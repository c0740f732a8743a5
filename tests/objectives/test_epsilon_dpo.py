import math

import pytest
import torch

from lit_pref.objectives import DPO, EpsilonDPO, EpsilonStep, Harmonic
from lit_pref.scores import Tilt, TiltSlope

EPSILON, BETA = 0.01, 0.1


def log_probs(logits):
    return torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)


@pytest.fixture
def golden(make):
    """Two responses of two tokens over a vocabulary of three, with every statistic computed here in full."""
    f = {"chosen": [[2, 0, -1], [0.5, 1, 0]], "rejected": [[1, 0.5, 0], [0, 0.3, 0.9]]}
    g = {"chosen": [[1.5, 0.2, -1], [0.6, 0.6, 0.1]], "rejected": [[0.8, 0.8, 0], [0.1, 0.2, 0.6]]}
    y = {"chosen": [0, 1], "rejected": [1, 2]}

    def total(logits, side):
        return log_probs(logits)[range(2), y[side]].sum(0, keepdim=True)

    def tilted(c, side):
        return [[(1 + c) * a - c * b for a, b in zip(u, v, strict=True)] for u, v in zip(f[side], g[side], strict=True)]

    policy, reference = (
        make.pair(total(m["chosen"], "chosen"), total(m["rejected"], "rejected"), [2], [2]) for m in (f, g)
    )
    for side in ("chosen", "rejected"):
        p, q = log_probs(f[side]), log_probs(g[side])
        getattr(policy, side).statistics = {
            Tilt(EPSILON): total(tilted(EPSILON, side), side) - total(f[side], side),
            Tilt(-EPSILON): total(tilted(-EPSILON, side), side) - total(f[side], side),
            TiltSlope(): ((p - q)[range(2), y[side]] - (p.exp() * (p - q)).sum(-1)).sum(0, keepdim=True),
        }
    return make.inputs(policy, [reference], make.batch(1, margin=[1.0]))


def test_the_fixture_has_the_published_intermediate_values(golden):
    chosen, rejected = golden.policy.chosen, golden.policy.rejected
    now = chosen.scores - rejected.scores
    gaps = [
        chosen.statistics[Tilt(EPSILON)] - rejected.statistics[Tilt(EPSILON)] + now,
        now,
        chosen.statistics[Tilt(-EPSILON)] - rejected.statistics[Tilt(-EPSILON)] + now,
    ]
    golden_gaps = [1.005912261315618, 1.0007391910964951, 0.9955615362825515]
    assert [gap.item() for gap in gaps] == pytest.approx(golden_gaps, abs=1e-14)
    slope = chosen.statistics[TiltSlope()] - rejected.statistics[TiltSlope()]
    assert slope.item() == pytest.approx(0.5175359376767125, abs=1e-14)
    # d z_c / d c at 0 by central differences is the same slope, up to O(epsilon^2).
    assert ((gaps[0] - gaps[2]) / (2 * EPSILON)).item() == pytest.approx(slope.item(), abs=1e-6)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_pair_that_a_smaller_beta_would_part_further_gets_the_smaller_beta(golden, first_order):
    output = golden.into(EpsilonDPO(beta=BETA, epsilon=EPSILON, first_order=first_order))
    assert output.logged["epsilon_step"].item() == 1
    assert output.logged["beta"].item() == pytest.approx(0.1 / 1.01, abs=1e-15)
    # D = 0.5436705692221528, loss = log(1 + exp(-D / 10.1))
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.5436705692221528 * 0.1 / 1.01)), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6665949442753396, abs=1e-14)


def test_exchanging_the_two_responses_turns_the_step(golden):
    policy, reference = golden.policy, golden.references[0]
    policy.chosen, policy.rejected = policy.rejected, policy.chosen
    reference.chosen, reference.rejected = reference.rejected, reference.chosen
    for first_order in (False, True):
        output = golden.into(EpsilonDPO(beta=BETA, epsilon=EPSILON, first_order=first_order))
        assert output.logged["beta"].item() == pytest.approx(0.1 / 0.99, abs=1e-15)


def test_rewards_use_the_pair_s_own_beta(golden):
    output = golden.into(EpsilonDPO(beta=BETA, epsilon=EPSILON))
    ratio = (golden.policy.chosen.scores - golden.references[0].chosen.scores).item()
    assert output.chosen_rewards.item() == pytest.approx(ratio * 0.1 / 1.01, abs=1e-15)


@pytest.mark.parametrize("first_order", [False, True])
def test_epsilon_zero_is_dpo(make, first_order):
    objective = EpsilonDPO(beta=0.1, epsilon=0.0, first_order=first_order)
    inputs = make.random(objective)
    assert torch.equal(inputs.into(objective).losses, inputs.into(DPO(beta=0.1)).losses)
    objective.update(lambda total: total)
    assert objective.progress == {"beta": 0.1}


def test_the_needs_follow_the_criterion_and_fall_on_the_policy_alone():
    assert EpsilonDPO(epsilon=0.02).requirements.statistics == {Tilt(0.02), Tilt(-0.02)}
    assert EpsilonDPO(first_order=True).requirements.statistics == {TiltSlope()}
    assert EpsilonDPO().requirements.reference_statistics == frozenset()


def test_the_step_is_read_from_the_statistics_and_from_no_score(make):
    objective = DPO(reference=Harmonic(), temperature=EpsilonStep(first_order=True))
    inputs = make.random(objective, size=20, references=2)
    before = inputs.into(objective).logged["epsilon_step"]
    for scores in (inputs.policy, *inputs.references):
        scores.chosen.scores = scores.chosen.scores + 50
    assert torch.equal(inputs.into(objective).logged["epsilon_step"], before)
    slopes = inputs.policy.chosen.statistics
    slopes[TiltSlope()] = slopes[TiltSlope()] + 50
    assert bool((inputs.into(objective).logged["epsilon_step"] == 1).all())


def test_no_gradient_flows_through_the_step(make):
    objective = EpsilonDPO(beta=0.1)
    inputs = make.random(objective)
    tilt = inputs.policy.chosen.statistics[Tilt(0.01)].detach().requires_grad_()
    inputs.policy.chosen.statistics[Tilt(0.01)] = tilt
    output = inputs.into(objective)
    output.losses.sum().backward()
    assert tilt.grad is None
    slope = -output.logged["beta"] * torch.sigmoid(-output.logged["logits"])
    torch.testing.assert_close(inputs.policy.chosen.scores.grad, slope)
