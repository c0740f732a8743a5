"""The order and the windows, as properties over all small shapes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.sampling import (
    MicroBatch,
    WindowSampler,
    accumulation,
    epoch_order,
    evaluation_batches,
    micro_batches,
)

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
    return [i for cell in cells for i, real in zip(cell.indices, cell.real, strict=True) if real]


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
    assert all(len(cell.indices) == len(cell.real) for rank in ranks for cell in rank)


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
        assert {cell.window_pairs for cell in cells} == {sum(sum(cell.real) for cell in cells)}


@given(window=st.integers(1, 60), micro_batch=st.integers(1, 9), world=st.integers(1, 6))
def test_a_window_is_spread_evenly_with_fillers_only_where_there_are_fewer_pairs_than_cells(window, micro_batch, world):
    cells = [cell for ranks in micro_batches(range(window), world, micro_batch) for cell in ranks]
    sizes = [sum(cell.real) for cell in cells]
    assert max(sizes) - min(sizes) <= 1
    assert sum(not all(cell.real) for cell in cells) == max(0, len(cells) - window)
    assert all(not any(cell.real) for cell in cells if not all(cell.real))


@given(pairs=st.integers(2, 2000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation_fixed_by_seed_and_epoch(pairs, seed, epoch):
    order = epoch_order(pairs, seed, epoch)
    assert sorted(order) == list(range(pairs))
    assert order == epoch_order(pairs, seed, epoch)


def test_orders_of_different_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_does_not_touch_global_random_state():
    import numpy as np

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
