"""The order and the windows, as properties over all small shapes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.batching.sampling import (
    MicroBatch,
    WindowSampler,
    accumulation,
    epoch_order,
    evaluation_batches,
    least_rounds,
    micro_batches,
    micro_batches_within,
)
from lit_pref.data.batching.token_budget import TokenBudget

settings.register_profile("quick", max_examples=150, deadline=None)
settings.load_profile("quick")

SHAPE = {
    "pairs": st.integers(1, 40),
    "global_batch": st.integers(1, 17),
    "micro_batch": st.integers(1, 9),
    "world": st.integers(1, 5),
    "seed": st.integers(0, 2**40),
    "epoch": st.integers(0, 50),
}


def all_ranks(pairs, global_batch, micro_batch, world, seed, epoch, start_window=0):
    """[rank][k]: every rank's micro-batches of an epoch."""
    ranks = []
    for rank in range(world):
        sampler = WindowSampler(pairs, seed, global_batch, micro_batch, world, rank)
        sampler.set_epoch(epoch)
        sampler.start_window = start_window
        ranks.append(list(sampler))
    return ranks


def real_pairs(cells):
    return [i for cell in cells for i, real in zip(cell.indices, cell.is_real, strict=True) if real]


def windows_of(ranks, global_batch, pairs, micro_batch):
    """The pairs of every optimiser window, found as Lightning finds them: by counting batches."""
    every = accumulation(global_batch, len(ranks), micro_batch)
    length = len(ranks[0])
    return [
        sorted(real_pairs(cell for rank in ranks for cell in rank[start : start + every]))
        for start in range(0, length, every)
    ]


@given(**SHAPE)
def test_every_pair_is_real_exactly_once_an_epoch(**shape):
    ranks = all_ranks(**shape)
    assert sorted(real_pairs(cell for rank in ranks for cell in rank)) == list(range(shape["pairs"]))


@given(**SHAPE)
def test_all_ranks_have_the_announced_number_of_micro_batches_and_none_is_empty_or_too_large(**shape):
    ranks = all_ranks(**shape)
    sampler = WindowSampler(
        shape["pairs"], shape["seed"], shape["global_batch"], shape["micro_batch"], shape["world"], rank=0
    )
    assert {len(rank) for rank in ranks} == {len(sampler)}
    assert all(1 <= len(cell.indices) <= shape["micro_batch"] for rank in ranks for cell in rank)
    assert all(len(cell.indices) == len(cell.is_real) for rank in ranks for cell in rank)


@given(**SHAPE)
def test_windows_counted_in_micro_batches_are_slices_of_the_order_whatever_the_ranks(**shape):
    order = epoch_order(shape["pairs"], shape["seed"], shape["epoch"])
    size = shape["global_batch"]
    expected = [sorted(order[start : start + size]) for start in range(0, len(order), size)]
    found = windows_of(all_ranks(**shape), size, shape["pairs"], shape["micro_batch"])
    assert found == expected


@given(**SHAPE)
def test_the_stamp_is_the_number_of_real_pairs_of_the_window_over_all_ranks(**shape):
    ranks = all_ranks(**shape)
    every = accumulation(shape["global_batch"], shape["world"], shape["micro_batch"])
    for start in range(0, len(ranks[0]), every):
        cells = [cell for rank in ranks for cell in rank[start : start + every]]
        assert {cell.window_pairs for cell in cells} == {sum(sum(cell.is_real) for cell in cells)}


@given(window=st.integers(1, 60), micro_batch=st.integers(1, 9), world=st.integers(1, 6))
def test_a_window_is_spread_evenly_with_fillers_only_where_there_are_fewer_pairs_than_cells(window, micro_batch, world):
    cells = [cell for ranks in micro_batches(range(window), world, micro_batch) for cell in ranks]
    sizes = [sum(cell.is_real) for cell in cells]
    assert max(sizes) - min(sizes) <= 1
    assert sum(not all(cell.is_real) for cell in cells) == max(0, len(cells) - window)
    assert all(not any(cell.is_real) for cell in cells if not all(cell.is_real))


@given(pairs=st.integers(2, 2000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation_fixed_by_seed_and_epoch(pairs, seed, epoch):
    order = epoch_order(pairs, seed, epoch)
    assert sorted(order) == list(range(pairs))
    assert order == epoch_order(pairs, seed, epoch)


def test_orders_of_different_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_does_not_touch_global_random_state():
    np.random.seed(3)
    first = epoch_order(20, 1, 1)
    np.random.seed(4)
    assert epoch_order(20, 1, 1) == first


@given(**SHAPE, data=st.data())
def test_an_epoch_from_any_window_is_the_rest_of_the_whole_epoch(data, **shape):
    windows = -(-shape["pairs"] // shape["global_batch"])
    start = data.draw(st.integers(0, windows - 1))
    every = accumulation(shape["global_batch"], shape["world"], shape["micro_batch"])
    whole, rest = all_ranks(**shape), all_ranks(**shape, start_window=start)
    assert rest == [rank[start * every :] for rank in whole]


@given(**SHAPE)
def test_the_position_counts_the_real_pairs_of_all_ranks_given_so_far(**shape):
    ranks = all_ranks(**shape)
    sampler = WindowSampler(
        shape["pairs"], shape["seed"], shape["global_batch"], shape["micro_batch"], shape["world"], rank=0
    )
    for given_batches in range(len(sampler) + 1):
        counted = len(real_pairs(cell for rank in ranks for cell in rank[:given_batches]))
        assert sampler.pairs_in(given_batches) == counted


@given(pairs=st.integers(1, 60), batch=st.integers(1, 9), world=st.integers(1, 6))
def test_evaluation_counts_every_pair_once_and_keeps_the_order_and_the_ranks_in_step(pairs, batch, world):
    ranks = [evaluation_batches(pairs, rank, world, batch) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    in_turn = [cell for turn in zip(*ranks, strict=True) for cell in turn]
    assert real_pairs(in_turn) == list(range(pairs))
    assert {cell.window_pairs for cell in in_turn} == {pairs}


def test_a_worked_window_over_two_ranks():
    # Five pairs, at most two at a time on two ranks: 5 / 4 -> two rounds, four cells of sizes 1, 1, 1, 2.
    assert micro_batches([7, 3, 5, 1, 6], world=2, micro_batch=2) == [
        [MicroBatch((7,), (True,), 5), MicroBatch((3,), (True,), 5)],
        [MicroBatch((5,), (True,), 5), MicroBatch((1, 6), (True, True), 5)],
    ]
    # One pair on three ranks: two fillers that count nowhere.
    assert micro_batches([9], world=3, micro_batch=2) == [
        [MicroBatch((9,), (False,), 1), MicroBatch((9,), (False,), 1), MicroBatch((9,), (True,), 1)]
    ]


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"global_batch": 0}, {"micro_batch": 0}, {"rank": 1}, {"seed": -1}])
def test_an_impossible_sampler_is_a_programming_error(wrong):
    fine = {"pairs": 10, "seed": 0, "global_batch": 4, "micro_batch": 2, "world": 1, "rank": 0}
    with pytest.raises(ValueError, match="impossible sampler"):
        WindowSampler(**{**fine, **wrong})


# Cut by tokens


@st.composite
def budgeted(draw):
    """A budget that every pair fits alone, and the other arguments of a sampler."""
    lengths = np.array(draw(st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=1, max_size=40)))
    layout = draw(st.sampled_from(["prefix_shared", "padded"]))
    largest = int(TokenBudget(0, lengths, layout).costs.max())
    shape = {
        "global_batch": draw(st.integers(1, 17)),
        "world": draw(st.integers(1, 4)),
        "epochs": draw(st.integers(1, 3)),
    }
    return {
        "budget": TokenBudget(largest + draw(st.integers(0, 300)), lengths, layout),
        "seed": draw(st.integers(0, 99)),
    } | shape


def samplers(budget, seed, global_batch, world, epochs):
    return [WindowSampler(len(budget.costs), seed, global_batch, budget, world, rank, epochs) for rank in range(world)]


def cells_of(ranks, epoch, start_window=0):
    """[rank][k], as `all_ranks`."""
    for sampler in ranks:
        sampler.set_epoch(epoch)
        sampler.start_window = start_window
    return [list(sampler) for sampler in ranks]


def taken(budget, cell):
    costs = [int(budget.costs[k]) for k in cell.indices]
    return sum(costs) if budget.layout == "prefix_shared" else len(costs) * max(costs)


@given(shape=budgeted())
def test_within_a_budget_windows_hold_what_they_hold_without_one_each_pair_once_and_no_cell_too_much(shape):
    ranks, budget, size = samplers(**shape), shape["budget"], shape["global_batch"]
    for epoch in range(shape["epochs"]):
        cells = cells_of(ranks, epoch)
        assert {len(own) for own in cells} == {len(ranks[0])}
        assert all(taken(budget, cell) <= budget.tokens for own in cells for cell in own)
        order = epoch_order(len(budget.costs), shape["seed"], epoch)
        every = ranks[0].accumulation
        for w, start in enumerate(range(0, len(ranks[0]), every)):
            window = [cell for own in cells for cell in own[start : start + every]]
            assert sorted(real_pairs(window)) == sorted(order[w * size : (w + 1) * size])
            assert {cell.window_pairs for cell in window} == {len(real_pairs(window))}
        assert cells == cells_of(samplers(**shape), epoch)


@given(shape=budgeted())
def test_no_fewer_micro_batches_would_do_in_all_epochs(shape):
    budget, size, world = shape["budget"], shape["global_batch"], shape["world"]
    full, last = least_rounds(budget, shape["seed"], shape["epochs"], size, world)
    needed = {True: 0, False: 0}
    for epoch in range(shape["epochs"]):
        order = epoch_order(len(budget.costs), shape["seed"], epoch)
        for start in range(0, len(order), size):
            window = order[start : start + size]
            rounds = 1
            while True:
                try:
                    budget.cut(window, rounds * world)
                    break
                except ValueError:
                    rounds += 1
            needed[len(window) == size] = max(needed[len(window) == size], rounds)
    assert (full, last) == (needed[True], needed[False])
    assert samplers(**shape)[0].accumulation == max(full, last)


@given(shape=budgeted(), data=st.data())
def test_within_a_budget_positions_count_real_pairs_and_any_window_starts_the_rest(shape, data):
    ranks, fresh = samplers(**shape), samplers(**shape)[0]
    epochs = [cells_of(ranks, epoch) for epoch in range(shape["epochs"])]
    for given_batches in range(len(fresh) + 1):
        for epoch, whole in enumerate(epochs):
            fresh.set_epoch(epoch)
            counted = len(real_pairs(cell for own in whole for cell in own[:given_batches]))
            assert fresh.pairs_in(given_batches) == counted
            # Nothing is taken for the end of a window that is none.
            at_end = given_batches % fresh.accumulation == 0 or given_batches == len(fresh)
            assert at_end or counted % shape["global_batch"]
    start = data.draw(st.integers(0, fresh.windows - 1))
    assert cells_of(ranks, shape["epochs"] - 1, start) == [own[start * fresh.accumulation :] for own in whole]


@given(shape=budgeted(), more=st.integers(0, 3))
def test_ranks_take_much_the_same_in_a_round_and_fillers_only_where_pairs_are_too_few(shape, more):
    budget, world = shape["budget"], shape["world"]
    window = list(range(len(budget.costs)))
    rounds = -(-budget.least(window) // world) + more
    cut = micro_batches_within(window, world, budget, rounds)
    assert [len(ranks) for ranks in cut] == [world] * rounds
    for earlier, later in pairwise(cut):
        assert max(taken(budget, cell) for cell in earlier) <= min(taken(budget, cell) for cell in later)
    fillers = [cell for ranks in cut for cell in ranks if not any(cell.is_real)]
    assert len(fillers) == max(0, rounds * world - len(window))
    assert all(cell.indices == (int(budget.costs.argmin()),) for cell in fillers)
    assert all(all(cell.is_real) for ranks in cut for cell in ranks if cell not in fillers)


@given(shape=budgeted())
def test_evaluation_within_a_budget_counts_every_pair_once_and_keeps_the_ranks_in_step(shape):
    budget, world, pairs = shape["budget"], shape["world"], len(shape["budget"].costs)
    ranks = [evaluation_batches(pairs, rank, world, budget) for rank in range(world)]
    assert {len(own) for own in ranks} == {-(-budget.least(range(pairs)) // world)}
    cells = [cell for own in ranks for cell in own]
    assert sorted(real_pairs(cells)) == list(range(pairs))
    assert {cell.window_pairs for cell in cells} == {pairs}
    assert all(taken(budget, cell) <= budget.tokens for cell in cells)
    assert ranks == [evaluation_batches(pairs, rank, world, budget) for rank in range(world)]


def test_the_first_batches_of_an_evaluation_within_a_budget_are_not_the_shortest():
    lengths = np.arange(1, 301).reshape(100, 3)  # 100 pairs of 6, 15, ... 897 tokens
    cells = evaluation_batches(100, 0, 1, TokenBudget(1000, lengths, "prefix_shared"))
    first = [k for cell in cells[: len(cells) // 4] for k in cell.indices]
    assert min(first) < 25 and max(first) > 75


def test_a_worked_window_of_tokens_over_two_ranks():
    budget = TokenBudget(12, np.array([[1, 1, 1], [4, 3, 3], [2, 1, 1], [2, 2, 2], [4, 4, 3]]), "prefix_shared")
    # 3, 10, 4, 6, 11 tokens: 3 + 4 | 6 | 10 | 11 is the only slicing within 12 of four cells; from small to large
    # 6, 7, 10, 11, and the second round the other way round.
    rounds = micro_batches_within([0, 1, 2, 3, 4], world=2, budget=budget, rounds=2)
    assert [[cell.indices for cell in ranks] for ranks in rounds] == [[(3,), (0, 2)], [(4,), (1,)]]
    # One pair on two ranks.
    assert micro_batches_within([4], 2, budget, rounds=1) == [
        [MicroBatch((4,), (False,), 1), MicroBatch((4,), (True,), 1)]
    ]
