import copy
import math

import pytest
import torch

from lit_pref.metrics.accumulator import SLOTS, TrainAccumulator
from lit_pref.metrics.pair_metrics import summarise
from lit_pref.metrics.records import PairRecords, merge


def alone(tensor):
    return tensor


def accumulate(steps):
    accumulator = TrainAccumulator()
    for step in steps:
        accumulator.add(step.output, step.policy, step.references, step.pairs)
    return accumulator


def flush_together(accumulators):
    """Every rank's flush, each with an all_reduce that sums what all of them would send."""
    sent = []
    for accumulator in accumulators:
        copy.deepcopy(accumulator).flush(lambda tensor: sent.append(tensor.clone()) or tensor)
    return [accumulator.flush(lambda tensor: torch.stack(sent).sum(0)) for accumulator in accumulators]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_metrics_are_those_of_the_records_of_the_same_pairs(deal, world):
    ranks = deal(world)
    records = []
    for steps in ranks:
        kept = PairRecords()
        for step in steps:
            kept.add(step.pairs, step.policy, step.references, step.output)
        records.append(kept.collect())
    expected = summarise(merge(records), prefix="train")
    del expected["train/non_finite_pairs"]
    lengths = expected["train/lengths/chosen"] + expected["train/lengths/rejected"]
    for metrics in flush_together([accumulate(steps) for steps in ranks]):
        assert metrics.pop("train/response_tokens") == pytest.approx(37 * lengths, rel=1e-12)
        assert metrics == pytest.approx(expected, rel=1e-12)


def test_a_flush_is_one_reduction_of_one_tensor(deal):
    (steps,) = deal(1)
    calls = []
    accumulate(steps).flush(lambda tensor: calls.append(tensor.shape) or tensor)
    assert calls == [(SLOTS, 4)]


def test_a_flush_starts_anew(take):
    accumulator = accumulate([take([0, 1])])
    accumulator.flush(alone)
    step = take([2, 3, 4])
    accumulator.add(step.output, step.policy, step.references, step.pairs)
    metrics = accumulator.flush(alone)
    assert metrics["train/pairs"] == 3
    assert metrics["train/loss"] == pytest.approx(step.output.losses.mean().item(), rel=1e-12)


def test_a_flush_without_a_micro_batch_is_refused():
    with pytest.raises(ValueError, match="at least one micro-batch"):
        TrainAccumulator().flush(alone)


def test_a_value_that_only_some_micro_batches_log_is_averaged_over_their_pairs(take):
    first, second = take([0, 1, 2]), take([3])
    first.output.logged = {"clipped": torch.tensor([True, False, False])}
    second.output.logged = {"weight": torch.tensor([5.0])}
    metrics = accumulate([first, second]).flush(alone)
    assert metrics["train/clipped"] == pytest.approx(1 / 3)
    assert metrics["train/weight"] == 5.0
    assert metrics["train/loss"] == pytest.approx((first.output.losses.sum() + second.output.losses.sum()).item() / 4)


def test_ranks_may_meet_the_same_names_in_different_micro_batches(take):
    first, second = take([0, 1]), take([2])
    first.output.logged, second.output.logged = {"x": torch.tensor([1.0, 2.0])}, {}
    other, last = take([3]), take([4, 5])
    other.output.logged, last.output.logged = {}, {"x": torch.tensor([3.0, 6.0])}
    for metrics in flush_together([accumulate([first, second]), accumulate([other, last])]):
        assert metrics["train/x"] == 3.0
        assert metrics["train/pairs"] == 6


def test_ranks_that_logged_different_names_are_told_and_nothing_is_mixed_up(take):
    first, second = take([0]), take([1])
    first.output.logged, second.output.logged = {"alpha": torch.ones(1)}, {"beta": torch.ones(1)}
    for mine, theirs in [(first, second), (second, first)]:
        sent = []
        accumulate([theirs]).flush(lambda tensor, sent=sent: sent.append(tensor.clone()) or tensor)
        with pytest.raises(ValueError, match="the ranks logged different values"):
            accumulate([mine]).flush(lambda tensor, sent=sent: tensor + sent[0])


def test_a_rank_that_logged_more_names_than_another_is_told_too(take):
    first, second = take([0]), take([1])
    first.output.logged, second.output.logged = {"zeta": torch.ones(1)}, {}
    sent = []
    accumulate([first]).flush(lambda tensor: sent.append(tensor.clone()) or tensor)
    with pytest.raises(ValueError, match="the ranks logged different values"):
        accumulate([second]).flush(lambda tensor: tensor + sent[0])


def test_many_logged_names_find_room(take):
    step = take([0])
    step.output.logged = {f"weight/{k}": torch.tensor([float(k)]) for k in range(100)}
    metrics = accumulate([step]).flush(alone)
    assert all(metrics[f"train/weight/{k}"] == k for k in range(100))


def test_a_rank_of_fillers_only_changes_nothing(take):
    step, filler = take([0, 1]), take([2, 3], is_real=[False, False])
    with_filler = flush_together([accumulate([step]), accumulate([filler])])[1]
    assert with_filler == accumulate([step]).flush(alone)


def test_a_filler_that_is_not_finite_counts_nowhere_but_a_pair_shows(take):
    step = take([0, 1], is_real=[True, False])
    step.output.losses = torch.tensor([0.25, math.nan])
    assert accumulate([step]).flush(alone)["train/loss"] == 0.25
    step.pairs.is_real = torch.tensor([True, True])
    step.output.chosen_rewards = torch.tensor([math.nan, 1.0])
    metrics = accumulate([step]).flush(alone)
    for name in ("loss", "rewards/chosen", "rewards/margins", "rewards/accuracies"):
        assert math.isnan(metrics[f"train/{name}"]), name
    assert math.isfinite(metrics["train/rewards/rejected"])


def test_one_sided_training_reports_only_the_side_it_reads(one_sided):
    metrics = accumulate([one_sided]).flush(alone)
    assert not {name for name in metrics if "rejected" in name or "margins" in name or "accuracies" in name}
    assert metrics["train/response_tokens"] == one_sided.policy.chosen.lengths.sum().item()


def test_sums_of_many_small_losses_keep_their_digits(take):
    # In fp32 the sum of 20000 losses of 0.1 is off in the fourth digit.
    step = take([0] * 20)
    step.output.losses = torch.full((20,), 0.1)
    metrics = accumulate([step] * 1000).flush(alone)
    assert metrics["train/loss"] == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)
