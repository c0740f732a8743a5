import math

import pytest
import torch

from lit_pref.metrics.intervals import mean_interval, prompt_intervals, share_interval

GENERATOR = torch.Generator()


@pytest.mark.parametrize("prompts", [3, 8, 15, 40])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_nineteen_of_twenty_intervals_of_a_share_over_few_prompts_hold_it(prompts: int, share: float):
    GENERATOR.manual_seed(prompts)
    clusters = [k // 2 for k in range(2 * prompts)]
    held = 0
    for _ in range(400):
        # Half of the prompts have two equal pairs.
        first, second = (torch.bernoulli(torch.full((prompts,), share), generator=GENERATOR) for _ in range(2))
        same = torch.bernoulli(torch.full((prompts,), 0.5), generator=GENERATOR).bool()
        values = torch.stack([first, torch.where(same, first, second)], 1).flatten()
        low, high = share_interval(values, clusters)
        assert 0 <= low < high <= 1
        held += low <= share <= high
    assert held / 400 >= 0.91


@pytest.mark.parametrize("prompts", [3, 8, 15])
def test_nineteen_of_twenty_intervals_of_a_mean_over_few_prompts_hold_it(prompts: int):
    GENERATOR.manual_seed(prompts)
    clusters = [k // 3 for k in range(3 * prompts)]
    held = 0
    for _ in range(400):
        own = torch.randn(prompts, generator=GENERATOR, dtype=torch.float64).repeat_interleave(3)
        low, high = mean_interval(own + torch.randn(3 * prompts, generator=GENERATOR), clusters)
        held += low <= 0 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_shares_of_0_and_1_are_never_certain_and_ties_of_a_policy_with_itself_are():
    records = {"id": list("abcd"), "prompt": ["p", "p", "q", "q"]}
    values = {"none": torch.zeros(4), "every": torch.ones(4), "ties": torch.full((4,), 0.5), "loss": torch.ones(4) * 3}
    found = prompt_intervals(records, values)
    assert found["none"][0] == 0 and 0.5 < found["none"][1] < 0.7
    assert 0.3 < found["every"][0] < 0.5 and found["every"][1] == 1
    assert found["ties"] == (0.5, 0.5) and found["loss"] == (3, 3)


def test_more_pairs_of_the_same_prompts_add_no_certainty():
    once = share_interval(torch.tensor([1.0, 0.0, 1.0, 1.0]), "abcd")
    assert share_interval(torch.tensor([1.0, 0.0, 1.0, 1.0]).repeat(9), "abcd" * 9) == pytest.approx(once)


def test_one_prompt_has_no_interval_of_a_mean_and_a_wide_one_of_a_share():
    records = {"id": ["a", "b"], "prompt": ["p", "p"]}
    found = prompt_intervals(records, {"margin": torch.tensor([1.0, 2.0]), "right": torch.tensor([1.0, 0.0])})
    assert list(found) == ["right"] and found["right"] == pytest.approx((0.055, 0.945), abs=1e-3)
    assert all(math.isfinite(end) for end in found["right"])
