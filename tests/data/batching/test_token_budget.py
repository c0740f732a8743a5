"""Cells by tokens, against all ways to slice a small window."""

import re
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.batching.token_budget import TokenBudget, refuse_pairs_above
from lit_pref.errors import UserError

LAYOUT = st.sampled_from(["prefix_shared", "padded"])
LENGTHS = st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=7)


def tokens_of(lengths, cell, layout):
    """What a forward pass over the pairs of a cell reads, padding included."""
    if layout == "prefix_shared":
        return sum(sum(lengths[k]) for k in cell)
    rows = [prompt + response for prompt, *responses in (lengths[k] for k in cell) for response in responses]
    return len(rows) * max(rows)


def all_slicings(lengths, layout):
    """Every way to slice the pairs from the smallest to the largest: the costs of its cells."""
    order = sorted(range(len(lengths)), key=lambda k: tokens_of(lengths, [k], layout))
    for cuts in range(len(order)):
        for places in combinations(range(1, len(order)), cuts):
            bounds = [0, *places, len(order)]
            yield [tokens_of(lengths, order[a:b], layout) for a, b in pairwise(bounds)]


def test_a_pair_takes_its_tokens_in_a_shared_row_and_its_rows_times_the_longer_in_padded_ones():
    lengths = np.array([[3, 2, 5], [4, 6, 1], [7, 2, 0]], np.int32)  # the last one has one side
    assert TokenBudget(99, lengths, "prefix_shared").costs.tolist() == [3 + 2 + 5, 4 + 6 + 1, 7 + 2]
    assert TokenBudget(99, lengths, "padded").costs.tolist() == [2 * (3 + 5), 2 * (4 + 6), 7 + 2]


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, layout=LAYOUT, spare=st.integers(0, 60))
def test_the_least_number_of_cells_is_that_of_the_best_slicing(lengths, layout, spare):
    tokens = max(tokens_of(lengths, [k], layout) for k in range(len(lengths))) + spare
    fitting = [len(costs) for costs in all_slicings(lengths, layout) if max(costs) <= tokens]
    assert TokenBudget(tokens, np.array(lengths), layout).least(range(len(lengths))) == min(fitting)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, layout=LAYOUT, spare=st.integers(0, 60), more=st.integers(0, 4))
def test_a_cut_makes_the_largest_cell_as_small_as_any_slicing_can(lengths, layout, spare, more):
    pairs = len(lengths)
    tokens = max(tokens_of(lengths, [k], layout) for k in range(pairs)) + spare
    budget = TokenBudget(tokens, np.array(lengths), layout)
    cells = budget.least(range(pairs)) + more
    cut = budget.cut(range(pairs), cells)
    costs = [tokens_of(lengths, cell, layout) for cell in cut]
    assert sorted(k for cell in cut for k in cell) == list(range(pairs))
    assert len(cut) == min(cells, pairs)
    assert max(costs) == min(max(other) for other in all_slicings(lengths, layout) if len(other) <= cells)
    assert costs == sorted(costs)


def test_a_worked_cut():
    # Costs 4, 6, 10, 3, 10 by index; from the smallest: 3, 4, 6, 10, 10 of the pairs 3, 0, 1, 2, 4.
    lengths = np.array([[2, 1, 1], [2, 2, 2], [5, 3, 2], [1, 1, 1], [4, 3, 3]])
    shared = TokenBudget(14, lengths, "prefix_shared")
    # The first three take 13; two of 10 never share a cell.
    assert shared.least(range(5)) == 3
    assert shared.cut(range(5), 3) == [[2], [4], [3, 0, 1]]
    assert shared.cut(range(5), 4) == [[1], [3, 0], [2], [4]]
    # Of equal pairs, the first of the window comes first: here pair 4.
    assert shared.cut([4, 2], 2) == [[4], [2]]
    # Padded they take 2 * (3, 4, 8, 2, 7) = 6, 8, 16, 4, 14: slices of 4, 6 | 8 | 14 | 16 within 16.
    padded = TokenBudget(16, lengths, "padded")
    assert padded.least(range(5)) == 4
    assert padded.cut(range(5), 4) == [[1], [3, 0], [4], [2]]


def test_a_window_that_does_not_fit_is_a_programming_error():
    with pytest.raises(ValueError, match="3 pairs do not fit 2 micro-batches of 5 tokens"):
        TokenBudget(5, np.full((3, 3), 1), "prefix_shared").cut([0, 1, 2], micro_batches=2)


def test_a_third_response_takes_its_prompt_once_more_and_padded_a_row_of_the_longest():
    lengths, extra_response = np.array([[3, 2, 5], [4, 6, 1], [4, 6, 0]]), np.array([1, 9, 2])
    assert TokenBudget(99, lengths, "prefix_shared", extra_response).costs.tolist() == [10 + 4, 11 + 13, 10 + 6]
    assert TokenBudget(99, lengths, "padded", extra_response).costs.tolist() == [3 * 8, 3 * 13, 2 * 10]
    # One cell may hold both a longest response and a longest third one: of two pairs, rows of 10, 10 and 13 each.
    assert 2 * TokenBudget(99, lengths, "padded", extra_response).costs.max() >= 2 * (10 + 10 + 13)


def test_a_pair_above_the_budget_is_refused_with_its_place_and_the_tokens_of_its_texts():
    lengths = np.array([[3, 2, 5], [4, 6, 1], [2, 5, 4]])
    pairs = [
        SimpleNamespace(
            prompt=[0] * p, chosen=[0] * c, rejected=[0] * r, extra_response=None, place=f"a.jsonl, line {k}"
        )
        for k, (p, c, r) in enumerate(lengths.tolist())
    ]
    sentence = (
        "a.jsonl, line 1: the texts (in tokens: prompt 4, chosen 6, rejected 1) take 11 tokens of a forward pass "
        "(prefix_shared rows), more than data.max_tokens 10{}; raise that to 11 or more, or lower data.max_length."
    )
    with pytest.raises(UserError, match=re.escape(sentence.format(" (1 other(s) are too large as well)"))):
        refuse_pairs_above([(TokenBudget(10, lengths, "prefix_shared"), pairs)])
    with pytest.raises(UserError, match=re.escape(sentence.format(""))):
        refuse_pairs_above([(TokenBudget(10, lengths[:2], "prefix_shared"), pairs)])
    refuse_pairs_above([(TokenBudget(11, lengths, "prefix_shared"), pairs)])
    refuse_pairs_above([(TokenBudget(1, lengths[:0], "prefix_shared"), [])])
