import math

import pytest
import torch

from lit_pref.objectives import FineGrained
from lit_pref.objectives.parts.tokens import edits
from lit_pref.scores import TokenRewards

EDITS = ([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
REWARDS = ([5.0, 0.5, -7.0, -1.0], [9.0, 2.0, -9.0])


def rewarded(make, *pairs, marks=(EDITS,), dtype=torch.float64):
    """A reward model's outputs at the tokens of each pair's responses."""
    inputs = make.tokens(pairs, [], edits=list(marks))
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        (values,) = side.statistics.values()
        side.statistics = {TokenRewards(): values.to(dtype).requires_grad_()}
    return inputs


def softplus(z):
    return math.log1p(math.exp(z))


def test_the_loss_is_the_mean_over_the_edited_tokens_of_both_responses(make):
    inputs = rewarded(make, REWARDS)
    output = inputs.into(FineGrained())
    # Inserted tokens have 0.5 and -1, the removed one 2; the other rewards do not count.
    assert output.losses.item() == pytest.approx((softplus(-0.5) + softplus(1.0) + softplus(2.0)) / 3, abs=1e-15)
    assert output.chosen_rewards.item() == pytest.approx(-2.5 / 4, abs=1e-15)
    assert output.rejected_rewards.item() == pytest.approx(2 / 3, abs=1e-15)
    output.losses.sum().backward()
    chosen = inputs.policy.chosen.statistics[TokenRewards()].grad[0].tolist()
    rejected = inputs.policy.rejected.statistics[TokenRewards()].grad[0].tolist()
    slopes = [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-2.0))]
    assert chosen == pytest.approx([0.0, -slopes[0] / 3, 0.0, -slopes[1] / 3], abs=1e-15)
    assert rejected == pytest.approx([0.0, slopes[2] / 3, 0.0], abs=1e-15)


def test_a_pair_counts_once_however_long_its_edit_is_and_padding_does_not_count(make):
    marks = [EDITS, ([1.0], [0.0])]
    alone = [
        rewarded(make, pair, marks=[own]).into(FineGrained()).losses.item()
        for pair, own in zip([REWARDS, ([0.3], [4.0])], marks, strict=True)
    ]
    together = rewarded(make, REWARDS, ([0.3], [4.0]), marks=marks).into(FineGrained())
    assert together.losses.tolist() == pytest.approx(alone, abs=1e-15)
    assert alone[1] == pytest.approx(softplus(-0.3), abs=1e-15)


def test_two_equal_responses_have_no_loss_and_no_gradient(make):
    inputs = rewarded(make, ([1.0, 2.0], [1.0, 2.0]), marks=[([0.0, 0.0], [0.0, 0.0])])
    losses = inputs.into(FineGrained()).losses
    losses.sum().backward()
    assert losses.item() == 0.0
    assert not inputs.policy.chosen.statistics[TokenRewards()].grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewards_of_ten_thousand_stay_finite(make, dtype):
    inputs = rewarded(make, ([-1e4], [1e4]), marks=[([1.0], [1.0])], dtype=dtype)
    losses = inputs.into(FineGrained()).losses
    losses.sum().backward()
    assert losses.item() == pytest.approx(1e4, rel=1e-2)
    assert inputs.policy.chosen.statistics[TokenRewards()].grad.item() == -0.5


def test_it_is_for_reward_models_and_finds_the_edits_itself():
    asked = FineGrained().requirements
    assert (asked.max_references, asked.statistics) == (0, {TokenRewards()})
    assert asked.token_functions == {"edits": edits}
    assert FineGrained().log_prob_parts() == []
