import math

import pytest
import torch

from lit_pref.metrics.pair_metrics import (
    MEASURES,
    bootstrap_interval,
    margin_quantiles,
    measures,
    non_finite_pairs,
    split_by_group,
    split_by_margin,
    summarise,
)
from lit_pref.metrics.records import PairRecords, merge


def collect(steps):
    records = PairRecords()
    for step in steps:
        records.add(step.pairs, step.policy, step.references, step.output)
    return records.collect()


def test_the_summary_of_three_pairs_worked_out_by_hand():
    records = {
        "id": ["a", "b", "c"],
        "loss": [0.5, 0.75, 1.0],
        "target_entropy": [0.25, 0.5, 0.0],
        "target": [0.75, 0.5, 1.0],
        "chosen_reward": [1.0, -1.0, 0.0],
        "rejected_reward": [0.0, -1.0, 3.0],
        "z": [1.0, 0.0, -3.0],
        "z_reference0": [2.0, 2.0, -2.0],
        "chosen_logp": [-10.0, -20.0, -30.0],
        "rejected_logp": [-11.0, -21.0, -34.0],
        "chosen_change": [-1.0, 0.0, 2.0],
        "chosen_length": [4, 5, 9],
        "rejected_length": [1, 1, 4],
        "beta": [0.1, 0.1, 0.4],
        "margin": [1.0, 2.0, 3.0],
        "group": ["x", "x", "y"],
    }
    assert summarise(records) == pytest.approx(
        {
            "val/loss": 0.75,
            "val/rewards/chosen": 0.0,
            "val/rewards/rejected": 2 / 3,
            "val/rewards/margins": -2 / 3,
            "val/rewards/accuracies": 0.5,  # right, tie, wrong
            "val/rewards/accuracies@reference0": 2 / 3,
            "val/logps/chosen": -20.0,
            "val/logps/rejected": -22.0,
            "val/chosen_fell": 1 / 3,  # a change of 0 is no fall
            "val/lengths/chosen": 6.0,
            "val/lengths/rejected": 2.0,
            "val/target": 0.75,
            "val/target_entropy": 0.25,
            "val/beta": 0.2,
            "val/pairs": 3,
            "val/non_finite_pairs": 0,
        }
    )


@pytest.mark.parametrize("world", [2, 3])
def test_the_summary_does_not_depend_on_the_number_of_ranks_to_the_last_bit(deal, world):
    whole = summarise(merge([collect(steps) for steps in deal(1)]))
    assert set(MEASURES) <= {name.removeprefix("val/") for name in whole}
    assert summarise(merge([collect(steps) for steps in deal(world)])) == whole


def test_one_sided_pairs_get_no_metric_of_the_side_that_is_not_there(one_sided):
    names = {name.removeprefix("val/") for name in summarise(collect([one_sided]))}
    assert {"loss", "rewards/chosen", "logps/chosen", "lengths/chosen", "chosen_fell"} <= names
    assert not {name for name in names if "rejected" in name or "margins" in name or "accuracies" in name}


def test_a_value_that_some_pairs_lack_is_averaged_over_the_others():
    summary = summarise({"id": ["a", "b", "c"], "loss": [1.0, 2.0, 6.0], "target_entropy": [0.5, None, 1.0]})
    assert summary["val/target_entropy"] == 0.75
    assert summary["val/loss"] == 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_never_averaged_away(bad):
    records = {
        "id": ["a", "b"],
        "loss": [1.0, bad],
        "z": [2.0, bad],
        "chosen_change": [-1.0, bad],
        "chosen_logp": [-1.0, -2.0],
    }
    summary = summarise(records)
    for name in ("loss", "rewards/margins", "rewards/accuracies", "chosen_fell"):
        assert not math.isfinite(summary[f"val/{name}"]), name
    assert summary["val/logps/chosen"] == -1.5
    assert summary["val/non_finite_pairs"] == 1
    assert non_finite_pairs(records) == ["b"]


@pytest.mark.parametrize("name", ["rewards/accuracies", "rewards/margins", "pairs"])
def test_an_objective_that_logs_under_the_name_of_a_metric_is_refused(name):
    values = {"loss": torch.zeros(2), name: torch.zeros(2)}
    with pytest.raises(ValueError, match=name):
        measures(values)


def check_parts_sum_to(whole, parts):
    assert sorted(pair for part in parts.values() for pair in part["id"]) == whole["id"]
    total = summarise(whole)
    summaries = [summarise(part) for part in parts.values()]
    for name in total.keys() - {"val/pairs", "val/non_finite_pairs"}:
        assert sum(s[name] * s["val/pairs"] for s in summaries) / 37 == pytest.approx(total[name], rel=1e-12)


def test_groups_sum_to_the_whole(take):
    whole = collect([take(list(range(37)))])
    parts = split_by_group(whole)
    assert {name: len(part["id"]) for name, part in parts.items()} == {"source 0": 13, "source 1": 12, "source 2": 12}
    check_parts_sum_to(whole, parts)


def test_pairs_without_a_group_are_not_lost(take):
    whole = collect([take(list(range(37)))])
    whole["group"][5] = None
    parts = split_by_group(whole)
    assert parts["ungrouped"]["id"] == ["pair-005"]
    check_parts_sum_to(whole, parts)


@pytest.mark.parametrize("edges", [[], [0.7], [-5.0, 0.2, 0.9, 50.0]])
def test_margin_bins_sum_to_the_whole(take, edges):
    whole = collect([take(list(range(37)))])
    whole["margin"][7] = None
    parts = split_by_margin(whole, edges)
    assert parts["no_margin"]["id"] == ["pair-007"]
    check_parts_sum_to(whole, parts)


def test_an_edge_belongs_to_the_bin_above_it():
    parts = split_by_margin({"id": list("abcd"), "margin": [0.5, 1.0, 1.5, 2.0]}, [1.0, 2.0])
    assert {name: part["id"] for name, part in parts.items()} == {
        "0_below_1": ["a"],
        "1_from_1": ["b", "c"],
        "2_from_2": ["d"],
    }


def test_edges_that_print_alike_still_make_two_bins():
    parts = split_by_margin({"id": list("abc"), "margin": [0.0, 1.00000005, 2.0]}, [1.0, 1.0000001])
    assert [part["id"] for part in parts.values()] == [["a"], ["b"], ["c"]]


def test_falling_edges_are_refused():
    with pytest.raises(ValueError, match="edges must increase"):
        split_by_margin({"id": [], "margin": []}, [2.0, 1.0])


def test_quantile_bins_hold_about_equally_many_pairs(take):
    whole = collect([take(list(range(37)))])
    parts = split_by_margin(whole, margin_quantiles(whole, bins=4))
    assert [len(part["id"]) for part in parts.values()] == [9, 9, 9, 10]


def test_tied_margins_make_fewer_quantile_bins_and_none_empty():
    records = {"id": list("abcdef"), "margin": [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]}
    edges = margin_quantiles(records, bins=6)
    parts = split_by_margin(records, edges)
    assert [part["id"] for part in parts.values()] == [list("abcde"), ["f"]]
    assert margin_quantiles({"id": ["a"]}, bins=3) == []


def test_the_bootstrap_interval_of_independent_pairs_is_that_of_the_normal_limit():
    values = torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = bootstrap_interval(values, None, seed=2, resamples=4000)
    half = 1.96 * values.std().item() / 500**0.5
    assert low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean().item() + half, abs=0.1 * half)


def test_repeating_every_pair_within_its_prompt_does_not_narrow_the_interval():
    values = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    once = bootstrap_interval(values, None, seed=4)
    repeated, prompts = values.repeat_interleave(9), [i for i in range(40) for _ in range(9)]
    assert bootstrap_interval(repeated, prompts, seed=4) == pytest.approx(once, rel=1e-12)
    low, high = bootstrap_interval(repeated, None, seed=4)  # as if independent: sqrt(9) times too narrow
    assert (high - low) * 3 == pytest.approx(once[1] - once[0], rel=0.15)


def test_prompts_weigh_by_their_pairs_in_the_interval():
    # Two prompts, three pairs of value 0 and one of value 1: the mean of a draw is 0, 1/4 or 1, so level 0.2 around the
    # median (probabilities 1/4, 1/2, 1/4) holds nothing but 1/4, which a mean over prompts would put at 1/2.
    low, high = bootstrap_interval(torch.tensor([0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"], seed=0, level=0.2)
    assert (low, high) == (0.25, 0.25)


def test_the_interval_depends_on_nothing_but_its_arguments():
    values = torch.randn(30, generator=torch.Generator().manual_seed(5))
    first = bootstrap_interval(values, None, seed=6)
    torch.manual_seed(123)
    assert bootstrap_interval(values, None, seed=6) == first
    assert bootstrap_interval(values, None, seed=7) != first


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_interval_of_a_value_that_is_not_finite_is_nan(bad):
    assert all(math.isnan(end) for end in bootstrap_interval(torch.tensor([1.0, bad]), None, seed=0))


def test_values_and_prompts_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="2 clusters"):
        bootstrap_interval(torch.zeros(3), ["a", "b"], seed=0)
