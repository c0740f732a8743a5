import math

import pytest
import torch

from lit_pref.objectives import BCO


def softplus(z):
    return math.log1p(math.exp(z))


def test_bco_has_no_shift_in_its_first_step_and_the_mean_reward_of_that_step_in_the_second(make):
    objective = BCO(beta=0.1)
    first = make.g0().into(objective)
    # r_w = 0.1 and r_l = -0.05
    assert first.losses.item() == pytest.approx(softplus(-0.1) + softplus(-0.05), abs=1e-15)
    assert first.losses.item() == pytest.approx(1.3128563080868572, abs=1e-15)
    objective.update(lambda total: total)
    assert objective.progress == {"delta": pytest.approx(0.025, abs=1e-16)}
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    second = inputs.into(objective)
    assert second.losses.item() == pytest.approx(2 * softplus(-0.075), abs=1e-15)
    assert second.losses.item() == pytest.approx(1.3127002816535902, abs=1e-15)
    second.losses.sum().backward()
    slope = 0.1 / (1 + math.exp(0.075))
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-slope, abs=1e-16)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(slope, abs=1e-16)


def rewards_of(make, chosen, rejected, is_real=None):
    count = len(chosen)
    return make.inputs(
        make.pair(chosen, rejected), [make.pair([0] * count, [0] * count)], make.batch(count, is_real=is_real)
    )


def test_delta_is_the_mean_over_responses_of_all_steps_micro_batches_and_ranks(make):
    whole, cut = BCO(beta=1.0), [BCO(beta=1.0), BCO(beta=1.0)]
    rewards_of(make, [4.0, 2.0, 9.0], [1.0, -3.0, 5.0]).into(whole)
    whole.update(lambda total: total)
    assert whole.progress == {"delta": 3.0}
    # The same pairs as two micro-batches of one rank and one of another, and a filler.
    rewards_of(make, [4.0], [1.0]).into(cut[0])
    rewards_of(make, [2.0], [-3.0]).into(cut[0])
    rewards_of(make, [9.0, 50.0], [5.0, 70.0], is_real=[True, False]).into(cut[1])
    summed = sum(objective._window for objective in cut)
    for objective in cut:
        objective.update(lambda total: summed)
        assert objective.progress == {"delta": 3.0}
    rewards_of(make, [9.0], [9.0]).into(whole)
    assert whole.progress == {"delta": 3.0}, "constant within a step"
    whole.update(lambda total: total)
    assert whole.progress == {"delta": 36 / 8}


def test_delta_is_state_that_a_checkpoint_restores(make):
    objective = BCO(beta=1.0)
    rewards_of(make, [4.0], [1.0]).into(objective)
    objective.update(lambda total: total)
    restored = BCO(beta=1.0)
    restored.load_state_dict(objective.state_dict())
    assert restored.progress == {"delta": 2.5}
    assert {value.dtype for value in restored.state_dict().values()} == {torch.float64}
    # A rank without a micro-batch adds nothing, and the next step continues the mean.
    restored.update(lambda total: total)
    assert restored.progress == {"delta": 2.5}


def test_evaluation_uses_the_shift_and_does_not_move_it(make):
    objective = BCO(beta=1.0)
    rewards_of(make, [4.0], [0.0]).into(objective)
    objective.update(lambda total: total)
    objective.eval()
    output = rewards_of(make, [2.0], [2.0]).into(objective)
    assert output.losses.item() == pytest.approx(2 * math.log(2), abs=1e-15)
    objective.update(lambda total: total)
    assert objective.progress == {"delta": 2.0}
