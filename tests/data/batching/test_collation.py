"""Pairs become a batch: nothing is lost, reordered or rounded on the way."""

import pickle
from dataclasses import replace

import pytest
import torch

from lit_pref.data.batching.collation import UncastBatches, collate
from lit_pref.data.batching.sampling import MicroBatch
from lit_pref.errors import UsageError
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scoring.layout import as_padded


def pair(k, margin=0.5, probability=None, rejected=True, group=None, **columns):
    text = TruncatedText(f"p{k}", f"c{k}", f"r{k}" if rejected else None, True, True)
    prompt, chosen = [10 + k] * (k + 1), [20 + k, 1]
    return PreferencePair(
        f"id{k}", prompt, chosen, [30 + k] * 3 if rejected else None, margin, probability, columns, group, text
    )


def test_a_batch_holds_every_response_token_once_behind_its_own_prompt():
    batch = collate([pair(0), pair(2)], pad_id=9)
    assert batch.rows.input_ids.tolist() == [
        [10, 20, 1, 9, 9, 9],
        [12, 12, 12, 22, 1, 9],
        [10, 30, 30, 30, 9, 9],
        [12, 12, 12, 32, 32, 32],
    ]
    assert torch.equal(batch.rows.attention_mask, (batch.rows.input_ids != 9).long())
    assert batch.rows.targets.tolist() == [20, 1, 22, 1, 30, 30, 30, 32, 32, 32]
    assert batch.rows.sequences.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    # What stands at a predictor is the token before its target.
    assert batch.rows.input_ids.flatten()[batch.rows.predictors].tolist() == [10, 20, 12, 22, 10, 30, 30, 12, 32, 32]
    assert (batch.pairs.chosen_lengths.tolist(), batch.pairs.rejected_lengths.tolist()) == ([2, 2], [3, 3])


def test_numbers_names_and_stamps():
    pairs = [pair(0, 0.25, 0.75, group="a", w=1.0), pair(1, 2.5, 0.5, group="b", w=-3.0)]
    batch = collate(pairs, pad_id=0, is_real=(True, False), window_pairs=7)
    assert (batch.pairs.ids, batch.pairs.groups) == (["id0", "id1"], ["a", "b"])
    assert batch.pairs.margin.tolist() == [0.25, 2.5]
    assert batch.pairs.probability.tolist() == [0.75, 0.5]
    assert {batch.pairs.margin.dtype, batch.pairs.probability.dtype, batch.pairs.columns["w"].dtype} == {torch.float32}
    assert batch.pairs.columns["w"].tolist() == [1.0, -3.0]
    assert batch.pairs.is_real.tolist() == [True, False]
    assert batch.pairs.is_real.dtype == torch.bool
    assert batch.pairs.window_pairs == 7
    assert [text.chosen for text in batch.pairs.texts] == ["c0", "c1"]


def test_without_stamps_all_are_real_and_the_window_is_the_batch():
    batch = collate([pair(0), pair(1)], pad_id=0)
    assert batch.pairs.is_real.tolist() == [True, True]
    assert batch.pairs.window_pairs == 2
    assert batch.pairs.probability is None
    assert batch.pairs.groups is None


def test_one_sided_pairs_have_one_row_each():
    batch = collate([pair(0, None, rejected=False), pair(1, None, rejected=False)], pad_id=0)
    assert batch.rows.input_ids.shape == (2, 4)
    assert batch.pairs.rejected_lengths is None
    assert batch.pairs.margin is None
    assert batch.rows.num_sequences == 2


@pytest.mark.parametrize(
    "pairs, sentence",
    [
        ([], "at least one pair"),
        ([pair(0), pair(1, rejected=False)], "only some pairs have a rejected response"),
        ([pair(0), pair(1, margin=None)], "only some pairs have a margin"),
        ([pair(0, probability=0.6), pair(1)], "only some pairs have a probability"),
    ],
)
def test_pairs_of_different_kinds_do_not_mix(pairs, sentence):
    with pytest.raises(ValueError, match=sentence):
        collate(pairs, pad_id=0)


def test_the_source_makes_the_batch_of_a_micro_batch_also_in_another_process():
    source = pickle.loads(pickle.dumps(UncastBatches([pair(k) for k in range(4)], pad_id=0)))
    batch = source[MicroBatch((3, 1), (True, False), 5)].batch
    assert batch.pairs.ids == ["id3", "id1"]
    assert (batch.pairs.is_real.tolist(), batch.pairs.window_pairs) == ([True, False], 5)


# Values of tokens, extra responses, places


def doubled(prompt, chosen, rejected):
    return [2.0 * token for token in chosen], [prompt[0] + 0.5 * token for token in rejected]


def with_tokens(k):
    made = pair(k)
    values = ([k + 0.25, -1.0], [k + 0.5, 7.0, 8.0])
    return replace(made, chosen=[20 + k, 1], rejected=[30 + k, 40 + k, 50 + k], token_columns={"spans": values})


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_every_token_keeps_its_own_value_in_every_layout(layout):
    batch = collate([with_tokens(0), with_tokens(2)], 0, layout=layout, token_functions={"doubled": doubled})
    tokens = batch.rows.by_response(batch.rows.targets, 2)
    value = {20: 0.25, 22: 2.25, 1: -1, 30: 0.5, 40: 7, 50: 8, 32: 2.5, 42: 7, 52: 8}
    for column, ids in zip(batch.pairs.token_columns["spans"], tokens, strict=True):
        assert column.tolist() == [[value[token] for token in row] for row in ids.tolist()]
    prompts = {30: 10, 40: 10, 50: 10, 32: 12, 42: 12, 52: 12}
    for column, ids in zip(batch.pairs.token_columns["doubled"], tokens, strict=True):
        expected = [[prompts[t] + 0.5 * t if t in prompts else 2.0 * t for t in row] for row in ids.tolist()]
        assert column.tolist() == expected
    assert {side.dtype for column in batch.pairs.token_columns.values() for side in column} == {torch.float32}
    chosen, rejected = batch.pairs.token_column("spans")
    assert (chosen.tolist(), rejected.tolist()) == ([[0.25, -1], [2.25, -1]], [[0.5, 7, 8], [2.5, 7, 8]])


def test_the_shared_layout_made_padded_keeps_the_pairs_and_their_token_values():
    pairs = [with_tokens(0), with_tokens(1), with_tokens(2)]
    plain, packed = collate(pairs, 0), as_padded(collate(pairs, 0, layout="prefix_shared"))
    assert packed.rows.targets.tolist() == plain.rows.targets.tolist()
    for ours, theirs in zip(packed.pairs.token_column("spans"), plain.pairs.token_column("spans"), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_token_values_of_responses_of_different_lengths_are_padded_with_zeros():
    short, long = with_tokens(0), replace(with_tokens(1), chosen=[21, 3, 1])
    values = ([0.5, 1.5, 2.5], [1.0, 7.0, 8.0])
    batch = collate([short, replace(long, token_columns={"spans": values})], 0)
    assert batch.pairs.token_column("spans")[0].tolist() == [[0.25, -1.0, 0.0], [0.5, 1.5, 2.5]]


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_ends_are_the_positions_of_the_last_tokens_also_of_one_token_responses(layout):
    pairs = [replace(pair(k), chosen=[20 + k], rejected=[30 + k]) for k in range(2)] + [pair(2)]
    rows = collate(pairs, 0, layout=layout).rows
    assert rows.input_ids.flatten()[rows.ends].tolist() == [20, 21, 1, 30, 31, 32]
    assert rows.num_sequences == 6
    one_sided = [replace(p, rejected=None) for p in pairs]
    rows = collate(one_sided, 0, layout=layout).rows
    assert rows.input_ids.flatten()[rows.ends].tolist() == [20, 21, 1]


def test_token_values_of_one_sided_pairs():
    one = replace(pair(0, None, rejected=False), token_columns={"spans": ([0.5, 2.0], None)})
    batch = collate([one], 0)
    assert batch.pairs.token_columns["spans"][0].tolist() == [[0.5, 2.0]]
    assert batch.pairs.token_column("spans")[1] is None


def test_token_values_that_are_too_few_or_have_a_name_twice_are_refused():
    short = replace(with_tokens(0), token_columns={"spans": ([1.0], [1.0] * 3)}, place="a.jsonl, line 3")
    with pytest.raises(ValueError, match=r"column spans of a\.jsonl, line 3 has 1 and 3 values for 2 and 3 tokens"):
        collate([short], 0)
    with pytest.raises(
        UsageError, match="the token column `spans` from the ids, and the data have a column of that name"
    ):
        collate([with_tokens(0)], 0, token_functions={"spans": doubled})


def with_third(k):
    text = TruncatedText(f"p{k}", f"c{k}", f"r{k}", True, True, f"t{k}", extra_response_complete=k > 0)
    return replace(with_tokens(k), extra_response=[60 + k] * (k + 1), text=text, place=f"pairs.jsonl, line {k + 1}")


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_third_responses_are_a_batch_of_their_own_behind_the_same_prompts(layout):
    pairs = [with_third(0), with_third(2)]
    batch = collate(pairs, 0, is_real=(True, False), window_pairs=7, layout=layout, extra_response=True)
    data, rows = batch.extra_response.pairs, batch.extra_response.rows
    assert (data.ids, data.places) == (["id0", "id2"], ["pairs.jsonl, line 1", "pairs.jsonl, line 3"])
    assert (data.is_real.tolist(), data.window_pairs) == ([True, False], 7)
    assert rows.targets.tolist() == [60, 62, 62, 62] and data.chosen_lengths.tolist() == [1, 3]
    assert rows.input_ids.flatten()[rows.predictors].tolist() == [10, 12, 62, 62]
    assert data.rejected_lengths is data.margin is batch.extra_response.extra_response is None
    assert data.token_columns == {}
    assert [(text.chosen, text.chosen_complete, text.rejected) for text in data.texts] == [
        ("t0", False, None),
        ("t2", True, None),
    ]
    alone = collate([replace(pair, chosen=pair.extra_response, token_columns={}) for pair in pairs], 0)
    assert data.response_keys == [(chosen, None) for chosen, _ in alone.pairs.response_keys]
    assert (rows.segments is None) == (batch.rows.segments is None) == (layout == "padded")
    assert as_padded(batch).extra_response.rows.attention_mask.sum(1).tolist() == [2, 6]
    assert collate(pairs, 0).extra_response is None


def test_a_pair_without_a_third_response_is_named():
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 2 has no extra response"):
        collate([with_third(0), replace(with_third(1), extra_response=None)], 0, extra_response=True)


def test_a_pair_is_called_by_its_place_or_else_by_its_id():
    assert collate([with_third(0), with_third(1)], 0).pairs.names == ["pairs.jsonl, line 1", "pairs.jsonl, line 2"]
    assert collate([pair(0)], 0).pairs.names == ["pair id0"]


def test_the_source_lays_out_token_functions_and_third_responses_also_in_another_process():
    source = UncastBatches(
        [with_third(k) for k in range(3)], 0, "prefix_shared", {"doubled": doubled}, extra_response=True
    )
    batch = pickle.loads(pickle.dumps(source))[MicroBatch((2, 1), (True, True), 2)].batch
    assert batch.extra_response.pairs.ids == ["id2", "id1"]
    assert batch.pairs.token_columns["doubled"][0][0, 0] == 44.0
    assert batch.to("cpu").extra_response.rows.targets.tolist() == [62, 62, 62, 61, 61]
