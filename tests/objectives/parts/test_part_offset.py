import math

import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import (
    DPO,
    ColumnOffset,
    ColumnsOffset,
    ColumnWeight,
    ConstantOffset,
    LengthOffset,
    MarginOffset,
    Mean,
    NoReference,
    Requirements,
)


def softplus(x):
    return math.log1p(math.exp(x))


def test_simpo_is_means_without_reference_and_a_constant_offset(make):
    # a_w = -12 / 10, a_l = -15 / 12; x = 2 (a_w - a_l) - 0.5 = -0.4
    trl = DPO(beta=2.0, reference=NoReference(), tokens=Mean(), offset=ConstantOffset(0.5))
    inputs = make.g0()
    inputs.references = []
    assert inputs.into(trl).losses.item() == pytest.approx(0.9130152523999525, abs=1e-14)
    # HALOs: beta 10, ratio 0.3, so an offset of 3
    halos = DPO(beta=10.0, reference=NoReference(), tokens=Mean(), offset=ConstantOffset(3.0))
    assert inputs.into(halos).losses.item() == pytest.approx(2.578889734292549, abs=1e-14)


def test_odpo_on_the_golden_pair(make):
    output = make.g0(margin=2.0).into(DPO(offset=MarginOffset(1.0)))
    assert output.losses.item() == pytest.approx(softplus(-(0.15 - math.log(2))), abs=1e-15)
    assert output.losses.item() == pytest.approx(1.001152315758658, abs=1e-15)


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_odpo_refuses_a_margin_without_logarithm_and_names_the_pair(make, margin):
    with pytest.raises(UserError, match=f"pair pair-0 has the margin {margin}: drop ties"):
        make.g0(margin=margin).into(DPO(offset=MarginOffset()))


def test_a_length_offset_asks_less_of_a_pair_whose_chosen_response_is_longer(make):
    # r - alpha n in place of r: x = beta D + alpha (n_w - n_l) = 0.15 + 0.01 * (10 - 12)
    output = make.g0().into(DPO(offset=LengthOffset(0.01)))
    assert output.losses.item() == pytest.approx(softplus(-0.13), abs=1e-15)
    # and with the sign of alpha turned 0.15 + 0.02
    turned = make.g0().into(DPO(offset=LengthOffset(-0.01)))
    assert turned.losses.item() == pytest.approx(0.6117553388706229, abs=1e-15)


def test_a_positive_length_offset_weakens_the_pull_towards_a_longer_response(make):
    slopes = []
    for objective in (DPO(), DPO(offset=LengthOffset(0.1))):
        inputs = make.inputs(make.pair([-12.0], [-15.0], [20], [5]), [make.pair([-13.0], [-14.5])], make.batch(1))
        inputs.policy.chosen.scores.requires_grad_()
        inputs.into(objective).losses.sum().backward()
        slopes.append(inputs.policy.chosen.scores.grad.abs().item())
    assert slopes[1] < slopes[0]


def test_modpo_is_a_column_offset_with_a_larger_beta(make):
    # w = (0.5, 0.5), R_w - R_l = 0.4, the column 0.5 * 0.4 and its scale 1 / 0.5: x = (0.1 * 1.5 - 0.2) / 0.5 = -0.1
    output = make.g0(other=0.2).into(DPO(beta=0.2, offset=ColumnOffset("other", scale=2.0)))
    assert output.losses.item() == pytest.approx(softplus(0.1), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.7443966600735709, abs=1e-15)


def test_modpo_over_columns_of_both_sides(make):
    # w = (0.5, 0.3, 0.2) for the trained preference, help and harm; R_w - R_l is 0.9 - 0.5 and 0.1 - 0.7:
    # x = (0.1 * 1.5 - (0.3 * 0.4 + 0.2 * -0.6)) / 0.5 = (0.15 - 0) / 0.5 = 0.3
    columns = {"help_chosen": 0.9, "help_rejected": 0.5, "harm_chosen": 0.1, "harm_rejected": 0.7}
    objective = DPO(beta=0.1 / 0.5, offset=ColumnsOffset({"help": 0.3, "harm": 0.2}, scale=1 / 0.5))
    assert make.g0(**columns).into(objective).losses.item() == pytest.approx(softplus(-0.3), abs=1e-14)
    assert objective.requirements.columns == columns.keys()
    # One reward, w = (0.5, 0.5), R_w - R_l = 0.4, is the pair of the difference column above.
    one = DPO(beta=0.2, offset=ColumnsOffset({"help": 0.5}, scale=2.0))
    output = make.g0(**columns).into(one)
    assert output.losses.item() == pytest.approx(0.7443966600735709, abs=1e-14)
    assert output.logged["logits"].item() == pytest.approx(-0.1, abs=1e-15)


def test_an_offset_over_both_sides_changes_its_sign_where_the_texts_swap(make):
    columns = {"help_chosen": 0.9, "help_rejected": 0.5}
    swapped = {"help_chosen": 0.5, "help_rejected": 0.9}
    offset = ColumnsOffset({"help": 0.3}, scale=-2.0)
    first, second = (offset(inputs.policy, inputs.pairs).item() for inputs in (make.g0(**columns), make.g0(**swapped)))
    assert first == pytest.approx(-0.24, abs=1e-15) and second == pytest.approx(0.24, abs=1e-15)


def test_a_missing_side_is_named(make):
    with pytest.raises(UserError, match="ColumnsOffset needs the field `help_rejected` of every pair"):
        make.g0(help_chosen=1.0).into(DPO(offset=ColumnsOffset({"help": 0.5})))


def test_the_length_in_tokens_counts_beside_columns(make):
    inputs = make.g0(help_chosen=0.9, help_rejected=0.5)  # n_w = 10, n_l = 12
    offset = ColumnsOffset({"help": 0.3}, scale=2.0, length=-0.1)
    assert offset(inputs.policy, inputs.pairs).item() == pytest.approx(2 * (0.3 * 0.4 - 0.1 * (10 - 12)), abs=1e-15)
    alone = ColumnsOffset({}, length=-0.01)
    assert torch.equal(alone(inputs.policy, inputs.pairs), LengthOffset(0.01)(inputs.policy, inputs.pairs))
    assert alone.requirements == Requirements()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [({}, "columns names no reward"), ({"help": math.nan}, "ColumnsOffset: help must be a finite number, got nan")],
)
def test_columns_without_a_weight_are_refused(columns, sentence):
    with pytest.raises(UsageError, match=sentence):
        ColumnsOffset(columns)


def test_a_column_weight_multiplies_the_loss(make):
    output = make.g0(trust=2.5).into(DPO(weight=ColumnWeight("trust")))
    assert output.losses.item() == pytest.approx(2.5 * 0.6209570477895321, abs=1e-14)
    # The fit to the target is a property of the pair, not of its weight.
    assert output.logged["kl_to_target"].item() == pytest.approx(0.6209570477895321, abs=1e-14)


@pytest.mark.parametrize("part", [{"offset": ColumnOffset("trust")}, {"weight": ColumnWeight("trust")}])
def test_columns_are_required_and_a_missing_one_is_named(make, part):
    assert DPO(**part).requirements.columns == {"trust"}
    with pytest.raises(UserError, match="needs the field `trust` of every pair"):
        make.g0().into(DPO(**part))


def test_a_column_of_another_shape_is_refused_instead_of_broadcast(make):
    inputs = make.g0(trust=1.0)
    inputs.pairs.columns["trust"] = inputs.pairs.columns["trust"].unsqueeze(1)
    with pytest.raises(ValueError, match=r"`trust` must be \(B,\) = \(1,\), got \(1, 1\)"):
        inputs.into(DPO(weight=ColumnWeight("trust")))


def test_the_margin_can_be_a_column(make):
    assert make.g0(margin=0.4).into(DPO(beta=0.2, offset=ColumnOffset("margin"))).losses.item() == pytest.approx(
        0.7443966600735709, abs=1e-15
    )


@pytest.mark.parametrize(
    "build",
    [lambda: ConstantOffset(math.inf), lambda: MarginOffset(math.nan), lambda: LengthOffset(-math.inf)],
)
def test_offsets_that_are_no_numbers_are_refused(build):
    with pytest.raises(UsageError, match="must be a finite number"):
        build()
