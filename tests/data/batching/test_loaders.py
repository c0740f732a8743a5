"""The position: what is given after a resume is what was left, and nothing else is accepted."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.batching.loaders import PairLoader, ResumableLoader
from lit_pref.data.batching.sampling import MicroBatch, WindowSampler, epoch_order, evaluation_batches
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.errors import UserError


class Cells:
    """A source whose batches are the micro-batches themselves."""

    def __getitem__(self, micro_batch: MicroBatch) -> MicroBatch:
        return micro_batch


def real_pairs(cells):
    return [i for cell in cells for i, real in zip(cell.indices, cell.is_real, strict=True) if real]


def loader(pairs=10, global_batch=4, micro_batch=2, seed=5, fingerprint="data", workers=0, world=1, rank=0, epochs=3):
    sampler = WindowSampler(pairs, seed, global_batch, micro_batch, world, rank, epochs)
    return ResumableLoader(Cells(), sampler, fingerprint, workers)


def run(one, epochs, first=0):
    """All batches of `epochs` with the states after each, as a loop that never asks beyond the last batch."""
    seen = []
    for epoch in range(first, epochs):
        iterator = iter(one)
        one.sampler.set_epoch(epoch)
        for batch in iterator:
            seen.append((epoch, batch, one.state_dict()))
    return seen


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.integers(1, 40),
    global_batch=st.integers(1, 17),
    micro_batch=st.integers(1, 9),
    world=st.integers(1, 5),
    data=st.data(),
)
def test_resuming_at_any_window_end_gives_exactly_the_rest(data, **shape):
    rank = data.draw(st.integers(0, shape["world"] - 1))
    whole = run(loader(**shape, rank=rank), epochs=3)
    ends = [k for k, (_, _, state) in enumerate(whole) if state["pairs"] % shape["global_batch"] == 0]
    k = data.draw(st.sampled_from(ends))
    resumed = loader(**shape, rank=rank)
    resumed.load_state_dict(whole[k][2])
    assert resumed.state_dict() == whole[k][2]
    assert run(resumed, epochs=3, first=whole[k][0]) == whole[k + 1 :]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=1, max_size=40),
    layout=st.sampled_from(["prefix_shared", "padded"]),
    spare=st.integers(0, 200),
    global_batch=st.integers(1, 17),
    world=st.integers(1, 4),
    data=st.data(),
)
def test_resuming_within_a_token_budget_gives_exactly_the_rest(lengths, layout, spare, global_batch, world, data):
    most = TokenBudget(0, np.array(lengths), layout).costs.max()
    budget = TokenBudget(int(most) + spare, np.array(lengths), layout)
    shape = {"pairs": len(lengths), "global_batch": global_batch, "micro_batch": budget, "world": world}
    shape["rank"] = data.draw(st.integers(0, world - 1))
    whole = run(loader(**shape), epochs=3)
    ends = [k for k, (_, _, state) in enumerate(whole) if state["pairs"] % global_batch == 0]
    assert len(ends) == 3 * -(-len(lengths) // global_batch)
    k = data.draw(st.sampled_from(ends))
    resumed = loader(**shape)
    resumed.load_state_dict(whole[k][2])
    assert run(resumed, epochs=3, first=whole[k][0]) == whole[k + 1 :]


def test_the_state_after_an_epoch_is_the_start_of_the_next_one():
    states = [state for _, _, state in run(loader(), epochs=1)]
    assert [(state["epoch"], state["pairs"]) for state in states] == [(0, 2), (0, 4), (0, 6), (0, 8), (1, 0)]


def test_an_epoch_that_the_trainer_cut_short_is_not_continued_in_the_next():
    first = loader()
    list(islice(iter(first), 2))
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    resumed.sampler.set_epoch(1)
    assert real_pairs(resumed) == epoch_order(10, 5, 1)


def test_workers_change_neither_batches_nor_states_and_fetch_ahead_without_counting():
    plain, ahead = run(loader(), epochs=2), run(loader(workers=2), epochs=2)
    assert plain == ahead


def test_loading_draws_nothing_from_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(loader(), epochs=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_plain_loader_gives_the_batches_of_its_list():
    cells = evaluation_batches(5, rank=0, world=1, batch=2)
    one = PairLoader(Cells(), cells)
    assert len(one) == 3
    assert list(one) == cells


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"pairs": 11}, "number of training pairs of 10, this run has 11; give it the same data"),
        ({"seed": 6}, "data.seed 5, this run has 6; set data.seed"),
        ({"global_batch": 5}, "data.global_batch 4, this run has 5; set data.global_batch"),
        ({"micro_batch": 1}, "micro-batches per optimizer step of 2, this run has 4; use the same number of devices"),
        ({"world": 2}, "micro-batches per optimizer step of 2, this run has 1; use the same number of devices"),
        ({"fingerprint": "other"}, "prepared training data data, this run has other; give it the same data"),
    ],
)
def test_a_position_in_something_else_is_refused(change, sentence):
    state = loader().state_dict()
    with pytest.raises(UserError, match=sentence):
        loader(**change).load_state_dict(state)


def test_a_position_within_an_optimiser_step_is_refused():
    one = loader()
    next(iter(one))
    with pytest.raises(UserError, match="after 2 pairs of epoch 0, within an optimizer step of 4 pairs"):
        loader().load_state_dict(one.state_dict())
