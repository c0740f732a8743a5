"""Lists stay whole: every list is in one micro-batch of one rank, whatever cuts the steps."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.batching.collation import UncastBatches
from lit_pref.data.batching.sampling import WindowSampler, evaluation_batches
from lit_pref.data.batching.token_budget import TokenBudget, refuse_pairs_above
from lit_pref.data.prepared.lists import Lists
from lit_pref.errors import UserError
from lit_pref.pairs import PreferencePair, TruncatedText

TEXT = TruncatedText("", "", None, True, True)


def records(sizes, lengths):
    """One record per response: its id names its list; and the lists that they form."""
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    pairs = [
        PreferencePair(f"{n}/{k}", [5] * 3, [6] * length, None, None, None, {"score": 1.0}, None, TEXT)
        for k, (n, length) in enumerate(zip(numbers, lengths, strict=False))
    ]
    return pairs, Lists([numbers])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    lengths=st.lists(st.integers(1, 9), min_size=60, max_size=60),
    global_batch=st.integers(1, 7),
    limit=st.one_of(st.integers(1, 4), st.sampled_from([80, 200])),
    world=st.integers(1, 2),
    layout=st.sampled_from(["padded", "prefix_shared"]),
    epoch=st.integers(0, 3),
)
def test_every_list_is_whole_in_one_micro_batch_and_read_once(
    sizes, lengths, global_batch, limit, world, layout, epoch
):
    pairs, lists = records(sizes, lengths)
    token_lengths = np.array([[len(p.prompt), len(p.chosen), 0] for p in pairs])
    cut = TokenBudget(limit, token_lengths, layout, lists=lists) if limit >= 80 else limit
    source = UncastBatches(pairs, 0, layout, lists=lists)
    ranks = []
    for rank in range(world):
        sampler = WindowSampler(len(lists), 0, global_batch, cut, world, rank, epochs=epoch + 1)
        sampler.set_epoch(epoch)
        ranks.append([source[batch].batch for batch in sampler])
    evaluation = [[source[b].batch for b in evaluation_batches(len(lists), r, world, cut)] for r in range(world)]
    for split in (ranks, evaluation):
        read = []
        for batch in (batch for rank in split for batch in rank):
            data = batch.pairs
            of = [id.partition("/")[0] for id in data.ids]
            for number in set(data.lists.tolist()):
                (name,) = {name for name, own in zip(of, data.lists.tolist(), strict=True) if own == number}
                assert of.count(name) == sizes[int(name)] and len({*data.is_real[data.lists == number].tolist()}) == 1
                read += [name] if data.is_real[data.lists == number].all() else []
            if limit >= 80:
                tokens = batch.rows.input_ids.numel()
                assert tokens <= limit
        assert sorted(read, key=int) == [str(n) for n in range(len(sizes))]
    every = sampler.accumulation
    for start in range(0, len(ranks[0]), every):
        window = [batch for rank in ranks for batch in rank[start : start + every]]
        assert sum(float(batch.pairs.weights.sum()) for batch in window) == pytest.approx(window[0].pairs.window_pairs)


def test_a_padded_list_costs_its_rows_times_the_longest_and_a_shared_one_the_sum():
    lengths = np.array([[3, 1, 0], [3, 4, 0], [2, 2, 0], [2, 1, 0], [2, 6, 0]])
    lists = Lists([np.array([8, 8, 9, 9, 9])])
    assert TokenBudget(99, lengths, "padded", lists=lists).costs.tolist() == [2 * 7, 3 * 8]
    assert TokenBudget(99, lengths, "prefix_shared", lists=lists).costs.tolist() == [11, 15]
    # Ten short rows and one long row in one micro-batch: eleven rows as long as the longest.
    lengths = np.array([[1, 1, 0]] * 10 + [[10, 10, 0]])
    budget = TokenBudget(100, lengths, "padded", lists=Lists([np.array([0] * 10 + [1])]))
    assert budget.costs.tolist() == [20, 20] and budget.least([0, 1]) == 2


def test_a_list_above_the_budget_is_refused_by_its_place():
    lengths, lists = np.array([[3, 1, 0], [3, 4, 0], [2, 2, 0]]), Lists([np.array([0, 0, 1])])
    pairs = [SimpleNamespace(place=f"lists.jsonl, line {k}") for k in (1, 1, 2)]
    with pytest.raises(
        UserError,
        match=r"^lists\.jsonl, line 1: the list of 2 responses, which stays in one .* takes 14 tokens .* 14 or",
    ):
        refuse_pairs_above([(TokenBudget(10, lengths, "padded", lists=lists), pairs)])
