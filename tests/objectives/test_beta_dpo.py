import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, BatchAdaptive, BetaDPO, NoReference, Squared

GAPS = (4.0, -1.0, 0.5, 2.5)


def softplus(x):
    return math.log1p(math.exp(x))


def alone(total):
    return total


def gaps(make, *values, is_real=None):
    """Pairs with the given differences of the log-ratios."""
    zero = [0.0] * len(values)
    return make.inputs(make.pair(values, zero), [make.pair(zero, zero)], make.batch(len(values), is_real=is_real))


def test_beta_follows_the_mean_gap_of_the_batch_less_its_moving_mean(make):
    inputs = gaps(make, *GAPS)
    chosen = inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(BetaDPO(beta=0.1, alpha=0.6, filtered=0.0, momentum=0.9))
    # The mean gap is 1.5; M moves from 0 to 0.15 with it, so that beta = 0.1 (1 + 0.6 (1.5 - 0.15)) = 0.181
    assert output.logged["beta"].tolist() == pytest.approx([0.181] * 4, abs=1e-15)
    assert output.losses.tolist() == pytest.approx([softplus(-0.181 * gap) for gap in GAPS], abs=1e-14)
    output.losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.181 / (1 + math.exp(0.181 * gap)) for gap in GAPS], abs=1e-14)


def test_the_moving_mean_and_deviation_of_two_steps(make):
    objective = BetaDPO(filtered=0.0)
    for values in (GAPS, (1.0, 3.0)):
        gaps(make, *values).into(objective)
        objective.update(alone)
    # deviations from the mean 1.5: 2.5, -2.5, -1, 1, so that the variance is 14.5 / 3; then sqrt(2) around 2
    deviation = 0.9 * 0.1 * math.sqrt(14.5 / 3) + 0.1 * math.sqrt(2)
    assert objective.progress == pytest.approx({"gap_mean": 0.9 * 0.15 + 0.2, "gap_deviation": deviation}, abs=1e-14)


def test_without_alpha_and_filter_it_is_dpo(make):
    inputs = make.random(BetaDPO())
    assert torch.equal(inputs.into(BetaDPO(alpha=0.0, filtered=0.0)).losses, inputs.into(DPO()).losses)


def test_validation_has_the_given_beta_and_all_pairs(make):
    objective = BetaDPO()
    gaps(make, *GAPS).into(objective)
    objective.update(alone)
    output = gaps(make, *GAPS).into(objective.eval())
    assert torch.equal(output.losses, gaps(make, *GAPS).into(DPO()).losses)
    assert output.logged["kept"].tolist() == [1.0] * 4


def test_the_loss_is_the_mean_over_the_pairs_that_are_kept(make):
    output = gaps(make, *GAPS, 0.1).into(BetaDPO(filtered=0.4))
    kept = output.logged["kept"].bool()
    assert int(kept.sum()) == 3
    # A over the three pairs; M and its deviation from all five, whose mean is 1.22
    level = torch.tensor([*GAPS, 0.1], dtype=torch.float64)[kept].mean().item()
    beta = 0.1 * (1 + 0.6 * (level - 0.122))
    assert output.logged["beta"][0].item() == pytest.approx(beta, abs=1e-15)
    losses = [softplus(-beta * gap) for gap, own in zip((*GAPS, 0.1), kept.tolist(), strict=True) if own]
    assert output.losses.mean().item() == pytest.approx(sum(losses) / 3, abs=1e-14)
    assert output.losses[~kept].tolist() == [0.0, 0.0]


def test_the_filter_acts_on_the_loss_wherever_the_temperature_is_used(make):
    inputs = make.random(BetaDPO(), size=10)
    first, second = BetaDPO(filtered=0.3, momentum=0.5), DPO(temperature=BatchAdaptive(filtered=0.3, momentum=0.5))
    losses = inputs.into(second).losses
    assert int((losses == 0).sum()) == 3
    assert torch.equal(inputs.into(first).losses, losses)
    # In validation no pair is left out, also after a batch of training.
    assert bool((inputs.into(second.eval()).losses > 0).all())


def test_a_beta_below_the_floor_is_refused_and_the_floor_is_an_argument():
    with pytest.raises(UsageError, match=r"beta 0.0005 lies outside BatchAdaptive's minimum .*floor=0.001"):
        BetaDPO(beta=0.0005)
    assert BetaDPO(beta=0.0005, floor=1e-5).temperature.floor == 1e-5


def test_pairs_far_from_the_moving_mean_are_left_out(make):
    objective = BetaDPO(filtered=0.2, momentum=0.0)
    left_out = []
    for _ in range(20):
        kept = gaps(make, 0.0, 0.1, -0.1, 0.2, 500.0).into(objective).logged["kept"]
        objective.update(alone)
        left_out.append(int(kept.argmin()))
    # exp(-(gap - M)^2 / (2 S^2)) with M = 100, S = 223: 0.2 for the outlier, 0.9 for the others
    assert left_out.count(4) >= 7 and len(set(left_out)) > 1, "a draw, in which outliers are likely"


def test_the_draw_has_the_probabilities_of_sampling_without_replacement(make):
    objective = BetaDPO(filtered=0.5, momentum=0.0)
    counts = torch.zeros(2, dtype=torch.float64)
    for _ in range(3000):
        counts += gaps(make, 0.0, 4.0).into(objective).logged["kept"]
        objective.temperature.steps += 1
    # M = 2 and S^2 = 8: both pairs have the weight exp(-1/4)
    assert (counts / 3000).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    counts.zero_()
    for _ in range(3000):
        counts += gaps(make, 0.0, 0.0, 6.0, is_real=[True, True, True]).into(objective).logged["kept"][[0, 2]]
        objective.temperature.steps += 1
    # Two of three are kept, M = 2 and S^2 = 12: weights a = exp(-1/6), twice, and b = exp(-2/3)
    a, b = math.exp(-1 / 6), math.exp(-2 / 3)
    third = b / (2 * a + b) + 2 * a / (2 * a + b) * b / (a + b)
    assert (counts / 3000).tolist() == pytest.approx([(2 - third) / 2, third], abs=0.03)


def test_the_draw_depends_on_pair_and_step_and_not_on_the_random_state(make):
    objective = BetaDPO(filtered=0.5, momentum=0.0)
    state = torch.random.get_rng_state()
    first = gaps(make, *range(20)).into(objective).logged["kept"]
    assert torch.equal(gaps(make, *range(20)).into(objective).logged["kept"], first)
    assert torch.equal(torch.random.get_rng_state(), state)
    objective.update(alone)
    assert not torch.equal(gaps(make, *range(20)).into(objective).logged["kept"], first)


def test_sums_over_ranks_and_micro_batches_give_the_state_of_one_batch(make):
    ranks, whole = [BetaDPO(), BetaDPO()], BetaDPO()
    gaps(make, *GAPS[:3]).into(ranks[0])
    gaps(make, GAPS[3]).into(ranks[1])
    gaps(make, 0.0, 7.0, is_real=[True, False]).into(ranks[1])
    total = sum(rank.temperature._window for rank in ranks)
    for rank in ranks:
        rank.update(lambda own: total)
    gaps(make, *GAPS, 0.0).into(whole)
    whole.update(alone)
    for rank in ranks:
        assert rank.progress == pytest.approx(whole.progress, abs=1e-14)


def test_only_fillers_or_no_batch_leave_beta_and_state(make):
    objective = BetaDPO()
    output = gaps(make, 3.0, 4.0, is_real=[False, False]).into(objective)
    assert output.logged["beta"].tolist() == [0.1, 0.1]
    objective.update(alone)
    assert objective.progress == {"gap_mean": 0.0, "gap_deviation": 0.0}


def test_one_pair_is_kept_and_equal_gaps_have_no_deviation(make):
    assert gaps(make, 2.0).into(BetaDPO(filtered=0.9)).logged["kept"].tolist() == [1.0]
    output = gaps(make, 0.0, 0.0, 0.0).into(BetaDPO(filtered=0.3))
    assert int(output.logged["kept"].sum()) == 2 and bool(output.losses.isfinite().all())


def test_the_loss_leaves_out_the_pairs_of_the_given_temperature_and_not_of_the_last_batch(make):
    objective = BetaDPO(filtered=0.5)
    inputs = gaps(make, *GAPS)
    ratios = (inputs.policy.chosen.scores, inputs.policy.rejected.scores)
    given = objective.temperature(0.1, ratios, inputs.policy, inputs.references, inputs.pairs)
    assert given.kept is not None and torch.equal(given.kept.to(given.beta), given.logged["kept"])
    gaps(make, 1.0, 2.0).into(objective)
    losses = objective.compare(ratios, ((0.0, 0.0), {}), given, inputs.policy, inputs.references, inputs.pairs).losses
    assert torch.equal(losses > 0, given.kept)
    assert objective.eval().temperature(0.1, ratios, inputs.policy, inputs.references, inputs.pairs).kept is None


def test_beta_never_goes_below_its_minimum(make):
    output = gaps(make, -100.0, -90.0).into(DPO(temperature=BatchAdaptive(floor=0.02)))
    assert output.logged["beta"].tolist() == pytest.approx([0.02, 0.02])


def test_the_state_is_checkpointed_in_float64(make):
    objective, other = BetaDPO(), BetaDPO()
    gaps(make, *GAPS).into(objective)
    objective.update(alone)
    other.load_state_dict(objective.bfloat16().state_dict())
    assert other.progress == objective.progress and int(other.temperature.steps) == 1
    assert {value.dtype for value in other.state_dict().values()} == {torch.float64}


def test_it_says_that_it_couples_the_pairs_of_a_batch():
    assert BetaDPO().batch_coupled and DPO(temperature=BatchAdaptive()).batch_coupled and not DPO().batch_coupled
    assert BetaDPO(reference=NoReference(), beta=1.0).requirements.max_references == 0
    with pytest.raises(UsageError, match="Squared divides by beta squared"):
        BetaDPO(link=Squared())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"alpha": -0.1}, "alpha must be finite and >= 0, got -0.1"),
        ({"alpha": math.inf}, "alpha must be finite"),
        ({"momentum": 1.0}, r"momentum is a share and must be in \[0, 1\), got 1.0"),
        ({"filtered": 1.0}, r"filtered is a share and must be in \[0, 1\), got 1.0"),
        ({"floor": 0.0}, "floor is the smallest beta and must be positive, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, sentence):
    for cls in (BatchAdaptive, BetaDPO):
        with pytest.raises(UsageError, match=f"{cls.__name__}: {sentence}"):
            cls(**arguments)
