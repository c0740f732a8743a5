import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, HPO, MarginTarget


def one_pair(make, objective, chosen=0.3, rejected=-0.2, value=0.0, tokens=(1, 1)):
    """The pair of h_w = 1, h_l = -0.5, with these rewards and this value of its prompt."""
    columns = {"safe_chosen": [chosen], "safe_rejected": [rejected]}
    lengths = {"lengths": tokens[:1], "rejected_lengths": tokens[1:]}
    scores = make.pair([-12], [-15], **lengths), [make.pair([-13], [-14.5], **lengths)]
    inputs = make.inputs(*scores, make.batch(1, margin=[2.0], **columns))
    inputs.policy.chosen.statistics[objective.value] = torch.tensor([value], dtype=torch.float64)
    return inputs


def test_it_has_the_golden_loss(make):
    objective = HPO({"safe": 1.0}, beta=0.1, gamma=0.1, lam=1.0)
    output = one_pair(make, objective).into(objective)
    of_value = output.logged["value_loss"].item()
    # A_w = 0.3, A_l = -0.2: |0.7 - 0| 0.3^2 and |0.7 - 1| 0.2^2.
    assert of_value == pytest.approx((0.7 * 0.09 + 0.3 * 0.04) / 2, abs=1e-15)
    expected = math.log1p(math.exp(-0.15)) + 0.1 * (12 * math.exp(0.3) + 15 * math.exp(-0.2)) / 2
    assert output.losses.item() - of_value == pytest.approx(expected, abs=1e-14)
    assert expected == pytest.approx(2.0449203971436205, abs=1e-15)
    per_token = one_pair(make, objective, tokens=(10, 12)).into(objective)
    expected = math.log1p(math.exp(-0.15)) + 0.1 * (1.2 * math.exp(0.3) + 1.25 * math.exp(-0.2)) / 2 + of_value
    assert per_token.losses.item() == pytest.approx(expected, abs=1e-15)


def test_policy_and_value_have_gradients_of_their_own_terms_only(make):
    objective = HPO({"safe": 1.0}, gamma=0.5, lam=2.0, tau=0.9)
    inputs = one_pair(make, objective, value=0.1)
    tensors = [
        inputs.policy.chosen.scores,
        inputs.policy.rejected.scores,
        inputs.policy.chosen.statistics[objective.value],
    ]
    for own in tensors:
        own.requires_grad_()
    inputs.into(objective).losses.sum().backward()
    pair = 0.1 / (1 + math.exp(0.15))
    expected = [
        -pair - 0.5 * math.exp(0.1) / 2,  # A_w = 0.2, over lam
        pair - 0.5 * math.exp(-0.15) / 2,  # A_l = -0.3
        -(0.9 * 2 * 0.2 + 0.1 * 2 * -0.3) / 2,
    ]
    assert [own.grad.item() for own in tensors] == pytest.approx(expected, abs=1e-15)


def test_without_likelihood_the_policy_is_trained_as_by_dpo(make):
    objective = HPO({"safe": 1.0}, beta=0.2, gamma=0.0, target=MarginTarget(0.5))
    inputs = make.random(objective)
    output = inputs.into(objective)
    plain = inputs.into(DPO(beta=0.2, target=MarginTarget(0.5))).losses
    torch.testing.assert_close(output.losses - output.logged["value_loss"], plain, rtol=0, atol=1e-12)


def test_rewards_are_weighed_and_the_weights_are_clipped(make):
    objective = HPO({"safe": 2.0, "short": -1.0}, clip=5.0)
    inputs = one_pair(make, objective, chosen=4.0, rejected=1.0, value=1.0)
    inputs.pairs.columns |= {"short_chosen": torch.tensor([3.0]), "short_rejected": torch.tensor([0.5])}
    # R = 5 and 1.5, A = 4 and 0.5.
    logged = inputs.into(objective).logged
    assert logged["advantage_weight"].item() == pytest.approx((5 + math.exp(0.5)) / 2, abs=1e-6)
    assert logged["value_loss"].item() == pytest.approx(0.7 * (16 + 0.25) / 2, abs=1e-6)


def test_the_best_value_is_the_expectile_of_the_rewards(make):
    objective = HPO({"safe": 1.0}, tau=0.8)
    value = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        inputs = one_pair(make, objective, chosen=2.0, rejected=-1.0)
        inputs.policy.chosen.statistics[objective.value] = value
        (gradient,) = torch.autograd.grad(inputs.into(objective).losses.sum(), value)
        value = (value - 0.2 * gradient).detach().requires_grad_()
    # tau (2 - v) = (1 - tau) (v + 1)
    assert value.item() == pytest.approx(0.8 * 2 - 0.2 * 1, abs=1e-9)


@pytest.mark.parametrize("reward", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_rewards_give_finite_losses_and_gradients(make, reward, dtype):
    objective = HPO({"safe": 1.0}, lam=1e-3)
    inputs = one_pair(make, objective, chosen=reward, rejected=-reward)
    tensors = [torch.tensor([-1e4], dtype=dtype, requires_grad=True) for _ in range(2)]
    inputs.policy.chosen.scores, inputs.policy.rejected.scores = tensors
    losses = inputs.into(objective).losses
    losses.sum().backward()
    assert losses.isfinite().all() and all(own.grad.isfinite().all() for own in tensors)


@pytest.mark.parametrize(
    "wrong", [{"gamma": -1.0}, {"tau": 0.4}, {"tau": 1.0}, {"lam": 0.0}, {"clip": 0.0}, {"value_rate": math.inf}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"HPO: gamma must be .* got .*{next(iter(wrong))} "):
        HPO({"safe": 1.0}, **wrong)


@pytest.mark.parametrize("rewards", [{}, {"safe": math.nan}])
def test_rewards_need_names_and_finite_weights(rewards):
    with pytest.raises(UsageError, match="HPO: rewards are NAME: weight with finite weights"):
        HPO(rewards)
