import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    DPO,
    MODPO,
    ColumnOffset,
    Geometric,
    Hinge,
    ImplicitRewards,
    LengthOffset,
    MarginTarget,
    Requirements,
)


def softplus(x):
    return math.log1p(math.exp(x))


def test_two_objectives_of_equal_weight_have_the_golden_loss(make):
    inputs = make.g0(help_chosen=0.9, help_rejected=0.5)
    chosen = inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(MODPO({"help": 0.5}, beta=0.1))
    # (1 / 0.5) (0.1 * 1.5 - 0.5 * 0.4) = -0.1
    assert output.losses.item() == pytest.approx(softplus(0.1), abs=1e-14)
    assert output.losses.item() == pytest.approx(0.7443966600735709, abs=1e-14)
    output.losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.1 / 0.5 / (1 + math.exp(-0.1)), abs=1e-14)
    rewards = output.chosen_rewards.item(), output.rejected_rewards.item()
    assert rewards == pytest.approx((0.2, -0.1), abs=1e-15)
    assert MODPO({"help": 0.5}).requirements.columns == {"help_chosen", "help_rejected"}


def test_three_objectives_under_the_hinge_of_the_official_code(make):
    inputs = make.g0(help_chosen=0.9, help_rejected=0.5, harm_chosen=0.1, harm_rejected=0.7)
    output = inputs.into(MODPO({"help": 0.3, "harm": -0.2}, w0=0.5, link=Hinge()))
    # (1 / 0.5) (0.15 - 0.3 * 0.4 + 0.2 * (0.1 - 0.7)) = -0.18
    assert output.losses.item() == pytest.approx(1 + 0.18, abs=1e-14)


def test_the_rewards_of_another_policy_are_columns_or_a_reference(make):
    # w = (0.5, 0.5) and a policy of an earlier stage with log-probs -11.5 and -17, so that R = 0.1 (1.5, -2.5)
    inputs = make.g0(safe_chosen=0.15, safe_rejected=-0.25)
    stored = inputs.into(MODPO({"safe": 0.5}))
    assert stored.losses.item() == pytest.approx(softplus(-(0.15 - 0.5 * 0.4) / 0.5), abs=1e-14)
    inputs.references.append(make.pair([-11.5], [-17.0]))
    implicit = inputs.into(MODPO({}, w0=0.5, reference=ImplicitRewards([0.5])))
    assert implicit.losses.item() == pytest.approx(stored.losses.item(), abs=1e-14)
    # Then the rewards are those of the official code: (1 / w_0) (beta h_w - w_1 R_w)
    assert implicit.chosen_rewards.item() == pytest.approx(2 * (0.1 - 0.5 * 0.15), abs=1e-14)
    # With weights that sum to 1 it is DPO against the geometric mean of the references.
    geometric = inputs.into(DPO(beta=0.1 / 0.5, reference=Geometric([0.5, 0.5])))
    assert implicit.losses.item() == pytest.approx(geometric.losses.item(), abs=1e-14)


def test_the_beta_of_an_earlier_stage_scales_its_weight(make):
    inputs = make.g0()
    inputs.references.append(make.pair([-11.5], [-17.0]))
    # w_1 = 0.3, trained with beta 0.05: R = 0.05 (1.5, -2.5), and c = 0.3 * 0.05 / 0.1
    output = inputs.into(MODPO({}, w0=0.7, reference=ImplicitRewards([0.15])))
    assert output.losses.item() == pytest.approx(softplus(-(0.15 - 0.3 * 0.05 * 4) / 0.7), abs=1e-14)


def test_length_is_an_objective_without_a_column(make):
    inputs = make.g0(margin=None)  # n_w = 10, n_l = 12
    output = inputs.into(MODPO({}, length=-0.01))
    assert output.losses.item() == pytest.approx(0.6302581946816906, abs=1e-15)  # R-DPO: 0.15 + 0.01 (10 - 12)
    assert torch.equal(output.losses, inputs.into(DPO(offset=LengthOffset(0.01))).losses)
    # The summarisation example of the official code: w = (1, 0.01) and R = -n
    assert output.losses.item() == pytest.approx(softplus(-(0.15 - 0.01 * (-10 + 12))), abs=1e-15)
    weighed = inputs.into(MODPO({}, w0=0.5, length=-0.01)).losses
    assert weighed.item() == pytest.approx(softplus(-(0.15 - 0.02) / 0.5), abs=1e-15)
    assert MODPO({}, length=-0.01).requirements == Requirements(1, 1)


def test_a_column_of_lengths_is_the_same(make):
    inputs = make.g0(words_chosen=10.0, words_rejected=12.0)
    columns, own = inputs.into(MODPO({"words": -0.01}, w0=1.0)), inputs.into(MODPO({}, length=-0.01))
    assert columns.losses.item() == pytest.approx(own.losses.item(), abs=1e-15)


def test_lengths_above_256_are_exact_in_bf16(make):
    inputs = make.g0()
    for pair in (inputs.policy, *inputs.references):
        for side, length in ((pair.chosen, 301), (pair.rejected, 300)):
            side.scores, side.lengths = side.scores.bfloat16(), torch.tensor([length])
    offset = MODPO({}, length=1.0).offset(inputs.policy, inputs.pairs)
    assert offset.item() == 1.0


def test_without_other_rewards_it_is_dpo(make):
    inputs = make.random(DPO())
    assert torch.equal(inputs.into(MODPO({})).losses, inputs.into(DPO()).losses)


def test_a_graded_target_fits_beside_other_rewards(make):
    output = make.g0(margin=2.0, help_chosen=0.9, help_rejected=0.5).into(
        MODPO({"help": 0.5}, target=MarginTarget(0.5))
    )
    p = 1 / (1 + math.exp(-1))
    assert output.losses.item() == pytest.approx(p * softplus(0.1) + (1 - p) * softplus(-0.1), abs=1e-14)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"rewards": {"a": 0.6, "b": 0.4}},
            "must be positive and finite; 1 minus the sum of rewards it is 0",
        ),
        ({"rewards": {"a": 0.6}, "w0": -0.1}, "must be positive and finite; as given it is -0.1"),
        ({"rewards": {"a": math.nan}}, "must be positive and finite"),
        ({"rewards": {"a": math.nan}, "w0": 1.0}, "MODPO: a must be a finite number, got nan"),
        ({"rewards": {}, "length": math.inf}, "MODPO: length must be a finite number, got inf"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        MODPO(**arguments)


def test_the_paper_s_numbers_are_printed():
    assert repr(MODPO({"help": 0.5})).startswith("MODPO(beta=0.1, rewards={'help': 0.5}, w0=None, length=0.0, ")


def test_a_difference_column_remains_another_way(make):
    one = make.g0(other=0.2).into(DPO(beta=0.2, offset=ColumnOffset("other", scale=2.0)))
    assert one.losses.item() == pytest.approx(0.7443966600735709, abs=1e-15)
