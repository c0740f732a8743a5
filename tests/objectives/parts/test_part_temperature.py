import math

import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import DPO, ColumnTemperature, EpsilonStep, MarginTarget, Requirements, Squared
from lit_pref.scores import TiltSlope

EPSILON = 0.01


def build(beta=0.1, **arguments):
    return DPO(beta=beta, temperature=EpsilonStep(epsilon=EPSILON, first_order=True, **arguments))


def steps(make, *signs, is_real=None):
    """Pairs whose first-order statistic has the given signs."""
    zero = torch.zeros(len(signs), dtype=torch.float64)
    inputs = make.inputs(make.pair(signs, zero), [make.pair(zero, zero)], make.batch(len(signs), is_real=is_real))
    inputs.policy.chosen.statistics[TiltSlope()] = torch.tensor(signs, dtype=torch.float64)
    inputs.policy.rejected.statistics[TiltSlope()] = zero
    return inputs


def alone(total):
    return total


def test_beta_becomes_the_arithmetic_mean_of_the_betas_of_the_window(make):
    objective = build()
    output = steps(make, 1, 1, -1, 0).into(objective)
    assert output.logged["beta"].tolist() == pytest.approx([0.1 / 1.01, 0.1 / 1.01, 0.1 / 0.99, 0.1], abs=1e-16)
    objective.update(alone)
    # (0.1 / 1.01 + 0.1 / 1.01 + 0.1 / 0.99 + 0.1) / 4; the official code's 0.1 / (1 + 0.01 / 4) is 0.09975062344139651
    assert objective.progress["beta"] == pytest.approx(0.099757476, abs=1e-9)
    assert objective.progress["beta"] == pytest.approx(output.logged["beta"].mean().item(), abs=1e-16)


def test_the_official_code_moves_beta_to_the_harmonic_mean(make):
    objective = build(harmonic=True)
    betas = steps(make, 1, 1, -1, 0).into(objective).logged["beta"]
    objective.update(alone)
    assert objective.progress["beta"] == pytest.approx(0.099750623, abs=1e-9)
    assert objective.progress["beta"] == pytest.approx(0.1 / (1 + 0.01 / 4), abs=1e-16)
    assert objective.progress["beta"] == pytest.approx(1 / (1 / betas).mean().item(), abs=1e-16)


def test_the_two_rules_drift_apart_where_half_of_the_pairs_step_up(make):
    paper, code = (
        DPO(temperature=EpsilonStep(0.05, first_order=True, harmonic=harmonic)) for harmonic in (False, True)
    )
    for objective in (paper, code):
        for _ in range(470):
            steps(make, 1, -1).into(objective)
            objective.update(alone)
    assert float(paper.temperature.scale) == pytest.approx((1 - 0.05**2) ** -470, rel=1e-12)
    assert float(code.temperature.scale) == pytest.approx(1, rel=1e-12)


def test_the_first_order_step_is_the_sign_of_the_difference_of_the_slopes(make):
    inputs = steps(make, 1.0, 1.0, -1.0, 1.0)
    inputs.policy.rejected.statistics[TiltSlope()] = torch.tensor([2.0, 0.5, -2.0, 1.0], dtype=torch.float64)
    assert inputs.into(build()).logged["epsilon_step"].tolist() == [-1.0, 1.0, 1.0, 0.0]


def test_the_next_window_starts_from_the_moved_beta(make):
    objective = build()
    for _ in range(2):
        steps(make, 1).into(objective)
        objective.update(alone)
    assert objective.progress["beta"] == pytest.approx(0.1 / 1.01**2, abs=1e-16)
    objective.update(alone)  # an empty window moves nothing
    assert objective.progress["beta"] == pytest.approx(0.1 / 1.01**2, abs=1e-16)


@pytest.mark.parametrize("windows", [[[1, 1, -1, 0, 1]], [[1], [0, 1, -1], [1]], [[-1, 0], [1, 1, 1]]])
def test_micro_batches_and_their_order_do_not_matter(make, windows):
    objective, whole = build(), build()
    for window in windows:
        steps(make, *window).into(objective)
    steps(make, 1, 1, 1, 0, -1).into(whole)
    objective.update(alone)
    whole.update(alone)
    assert torch.equal(objective.temperature.scale, whole.temperature.scale)


def test_sums_over_ranks_give_the_beta_of_one_process(make):
    ranks, whole = [build(), build()], build()
    steps(make, 1, 1, 0).into(ranks[0])
    steps(make, -1).into(ranks[1])  # fewer pairs: a mean of means would be wrong
    total = sum(rank.temperature._window for rank in ranks)
    for rank in ranks:
        rank.update(lambda own: total)
    steps(make, 1, 1, 0, -1).into(whole)
    whole.update(alone)
    assert [rank.progress for rank in ranks] == [whole.progress] * 2


def test_every_rank_reduces_even_where_it_saw_no_pair():
    calls = []
    build().update(lambda own: calls.append(own.tolist()) or own)
    assert calls == [[0.0, 0.0, 0.0]]


def test_fillers_are_not_counted(make):
    objective = build()
    steps(make, 1, -1, -1, is_real=[True, False, False]).into(objective)
    objective.update(alone)
    assert objective.progress["beta"] == pytest.approx(0.1 / 1.01, abs=1e-16)


def test_validation_uses_the_moved_beta_with_its_own_steps_and_moves_nothing(make):
    objective = build()
    steps(make, 1).into(objective)
    objective.update(alone)
    objective.eval()
    assert steps(make, -1).into(objective).logged["beta"].item() == pytest.approx(0.1 / 1.01 / 0.99, abs=1e-16)
    objective.update(alone)
    assert objective.progress["beta"] == pytest.approx(0.1 / 1.01, abs=1e-16)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half()])
def test_the_state_survives_dtype_casts_of_the_objective_and_of_what_holds_it(make, cast):
    objective = build()
    steps(make, 1).into(objective)
    objective.update(alone)
    before = objective.progress
    cast(torch.nn.ModuleDict({"objective": objective}))
    assert objective.temperature.scale.dtype == torch.float64
    assert objective.progress == before
    cast(objective)
    assert objective.progress == before
    assert objective.to("meta").temperature.scale.is_meta  # the device does move


def test_the_state_dict_carries_the_scale_bit_for_bit_and_no_window(make):
    objective, other = build(), build()
    steps(make, 1, 0, 0).into(objective)
    objective.update(alone)
    steps(make, 1).into(objective)
    assert set(objective.state_dict()) == {"temperature.scale"}
    other.load_state_dict(objective.state_dict())
    assert other.progress == objective.progress != {"beta": 0.1}


def test_beta_stays_within_its_bounds(make):
    objective = build(minimum=0.0995, maximum=0.1005)
    for sign, bound in ((1, 0.0995), (-1, 0.1005)):
        for _ in range(5):
            steps(make, sign).into(objective)
            objective.update(alone)
        assert objective.progress["beta"] == pytest.approx(bound, abs=1e-16)


def test_a_temperature_of_a_column_multiplies_beta(make):
    # beta = 0.1 * 2, D = 1.5: x = 0.3, and the loss log(1 + exp(-0.3))
    output = make.g0(trust=2.0).into(DPO(beta=0.1, temperature=ColumnTemperature("trust")))
    assert output.losses.item() == pytest.approx(0.5543552444685271, abs=1e-14)
    assert output.logged["beta"].item() == pytest.approx(0.2, abs=1e-16)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == pytest.approx((0.2, -0.1), abs=1e-16)
    assert DPO(temperature=ColumnTemperature("trust")).requirements == Requirements(1, 1, columns=frozenset({"trust"}))


def test_the_margin_can_be_the_column_of_a_temperature(make):
    # beside a target made of it: p = sigmoid(2), x = 0.1 * 2 * 1.5
    output = make.g0(margin=2.0).into(DPO(temperature=ColumnTemperature("margin"), target=MarginTarget(1.0)))
    p = 1 / (1 + math.exp(-2))
    expected = p * math.log1p(math.exp(-0.3)) + (1 - p) * math.log1p(math.exp(0.3))
    assert output.losses.item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_of_beta_that_is_not_positive_is_refused_with_its_pair(make, wrong):
    one = torch.ones(3, dtype=torch.float64)
    inputs = make.inputs(make.pair(one, -one), [make.pair(one, one)], make.batch(3, trust=[1.0, wrong, 2.0]))
    inputs.pairs.places = ["a.jsonl, line 1", "a.jsonl, line 2", "a.jsonl, line 3"]
    with pytest.raises(UserError, match=rf"multiplies beta by `trust`.*a\.jsonl, line 2 has {wrong}: correct or drop"):
        inputs.into(DPO(temperature=ColumnTemperature("trust")))


def test_a_beta_that_varies_with_a_column_is_refused_by_a_link_that_divides_by_it():
    with pytest.raises(UsageError, match="Squared divides by beta squared"):
        DPO(temperature=ColumnTemperature("trust"), link=Squared())


def test_a_constant_temperature_has_nothing_to_report():
    objective = DPO()
    objective.update(alone)
    assert objective.progress == {}
    assert objective.state_dict() == {}


@pytest.mark.parametrize("epsilon", [-0.01, 1.0, float("nan")])
def test_an_epsilon_that_is_no_relative_step_is_refused(epsilon):
    with pytest.raises(UsageError, match=r"epsilon is a relative step and must be in \[0, 1\)"):
        EpsilonStep(epsilon=epsilon)


def test_bounds_in_the_wrong_order_and_a_beta_outside_them_are_refused():
    with pytest.raises(UsageError, match=r"0 <= minimum <= maximum must hold, got 0\.2 and 0\.1"):
        EpsilonStep(minimum=0.2, maximum=0.1)
    with pytest.raises(UsageError, match=r"beta 0\.1 lies outside EpsilonStep's minimum and maximum"):
        build(maximum=0.05)
