"""Pairs become a batch: nothing is lost, reordered or rounded on the way."""

import pickle
from dataclasses import replace

import pytest
import torch

from lit_pref.data.collation import SealedBatches, collate
from lit_pref.data.sampling import MicroBatch
from lit_pref.errors import UsageError
from lit_pref.scoring.layout import as_padded
from lit_pref.types import KeptText, PreferencePair


def pair(k, margin=0.5, probability=None, rejected=True, group=None, **columns):
    text = KeptText(f"p{k}", f"c{k}", f"r{k}" if rejected else None, True, True)
    prompt, chosen = [10 + k] * (k + 1), [20 + k, 1]
    return PreferencePair(
        f"id{k}", prompt, chosen, [30 + k] * 3 if rejected else None, margin, probability, columns, group, text
    )


def test_a_batch_holds_every_response_token_once_behind_its_own_prompt():
    batch = collate([pair(0), pair(2)], pad_id=9)
    assert batch.input_ids.tolist() == [
        [10, 20, 1, 9, 9, 9],
        [12, 12, 12, 22, 1, 9],
        [10, 30, 30, 30, 9, 9],
        [12, 12, 12, 32, 32, 32],
    ]
    assert torch.equal(batch.attention_mask, (batch.input_ids != 9).long())
    assert batch.targets.tolist() == [20, 1, 22, 1, 30, 30, 30, 32, 32, 32]
    assert batch.sequences.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    # What stands at a predictor is the token before its target.
    assert batch.input_ids.flatten()[batch.predictors].tolist() == [10, 20, 12, 22, 10, 30, 30, 12, 32, 32]
    assert (batch.chosen_lengths.tolist(), batch.rejected_lengths.tolist()) == ([2, 2], [3, 3])


def test_numbers_names_and_stamps():
    pairs = [pair(0, 0.25, 0.75, group="a", w=1.0), pair(1, 2.5, 0.5, group="b", w=-3.0)]
    batch = collate(pairs, pad_id=0, real=(True, False), window_pairs=7)
    assert (batch.pair_ids, batch.groups) == (["id0", "id1"], ["a", "b"])
    assert batch.margin.tolist() == [0.25, 2.5]
    assert batch.probability.tolist() == [0.75, 0.5]
    assert {batch.margin.dtype, batch.probability.dtype, batch.columns["w"].dtype} == {torch.float32}
    assert batch.columns["w"].tolist() == [1.0, -3.0]
    assert batch.real.tolist() == [True, False]
    assert batch.real.dtype == torch.bool
    assert batch.window_pairs == 7
    assert [text.chosen for text in batch.texts] == ["c0", "c1"]


def test_without_stamps_all_are_real_and_the_window_is_the_batch():
    batch = collate([pair(0), pair(1)], pad_id=0)
    assert batch.real.tolist() == [True, True]
    assert batch.window_pairs == 2
    assert batch.probability is None
    assert batch.groups is None


def test_one_sided_pairs_have_one_row_each():
    batch = collate([pair(0, None, rejected=False), pair(1, None, rejected=False)], pad_id=0)
    assert batch.input_ids.shape == (2, 4)
    assert batch.rejected_lengths is None
    assert batch.margin is None
    assert batch.num_sequences == 2


@pytest.mark.parametrize(
    "pairs, sentence",
    [
        ([], "at least one pair"),
        ([pair(0), pair(1, rejected=False)], "some pairs have a rejected response and others not"),
        ([pair(0), pair(1, margin=None)], "some pairs have a margin and others not"),
        ([pair(0, probability=0.6), pair(1)], "some pairs have a probability and others not"),
    ],
)
def test_pairs_of_different_kinds_do_not_mix(pairs, sentence):
    with pytest.raises(ValueError, match=sentence):
        collate(pairs, pad_id=0)


def test_the_source_makes_the_batch_of_a_micro_batch_also_in_another_process():
    source = pickle.loads(pickle.dumps(SealedBatches([pair(k) for k in range(4)], pad_id=0)))
    batch = source[MicroBatch((3, 1), (True, False), 5)].batch
    assert batch.pair_ids == ["id3", "id1"]
    assert (batch.real.tolist(), batch.window_pairs) == ([True, False], 5)


# Values of tokens, third responses, places


def doubled(prompt, chosen, rejected):
    return [2.0 * token for token in chosen], [prompt[0] + 0.5 * token for token in rejected]


def with_tokens(k):
    made = pair(k)
    values = ([k + 0.25, -1.0], [k + 0.5, 7.0, 8.0])
    return replace(made, chosen=[20 + k, 1], rejected=[30 + k, 40 + k, 50 + k], token_columns={"spans": values})


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_every_token_keeps_its_own_value_in_every_layout(layout):
    batch = collate([with_tokens(0), with_tokens(2)], 0, layout=layout, token_functions={"doubled": doubled})
    value = {20: 0.25, 22: 2.25, 1: -1, 30: 0.5, 40: 7, 50: 8, 32: 2.5, 42: 7, 52: 8}
    assert batch.token_columns["spans"].tolist() == [value[token] for token in batch.targets.tolist()]
    prompts = {30: 10, 40: 10, 50: 10, 32: 12, 42: 12, 52: 12}
    made = [prompts[t] + 0.5 * t if t in prompts else 2.0 * t for t in batch.targets.tolist()]
    assert batch.token_columns["doubled"].tolist() == made
    assert {column.dtype for column in batch.token_columns.values()} == {torch.float32}
    chosen, rejected = batch.token_column("spans")
    assert (chosen.tolist(), rejected.tolist()) == ([[0.25, -1], [2.25, -1]], [[0.5, 7, 8], [2.5, 7, 8]])


def test_the_shared_layout_made_padded_keeps_token_values_beside_their_tokens():
    pairs = [with_tokens(0), with_tokens(1), with_tokens(2)]
    plain, packed = collate(pairs, 0), as_padded(collate(pairs, 0, layout="shared"))
    assert packed.targets.tolist() == plain.targets.tolist()
    assert packed.token_columns["spans"].tolist() == plain.token_columns["spans"].tolist()


def test_token_values_of_one_sided_pairs():
    one = replace(pair(0, None, rejected=False), token_columns={"spans": ([0.5, 2.0], None)})
    batch = collate([one], 0)
    assert batch.token_columns["spans"].tolist() == [0.5, 2.0]
    assert batch.token_column("spans")[1] is None


def test_token_values_that_are_too_few_or_have_a_name_twice_are_refused():
    short = replace(with_tokens(0), token_columns={"spans": ([1.0], [1.0] * 3)}, place="a.jsonl, line 3")
    with pytest.raises(ValueError, match=r"column spans of a\.jsonl, line 3 has 1 and 3 values for 2 and 3 tokens"):
        collate([short], 0)
    with pytest.raises(UsageError, match="computes the token column `spans` from the ids, and the data bring one"):
        collate([with_tokens(0)], 0, token_functions={"spans": doubled})


def with_third(k):
    text = KeptText(f"p{k}", f"c{k}", f"r{k}", True, True, f"t{k}", third_complete=k > 0)
    return replace(with_tokens(k), third=[60 + k] * (k + 1), text=text, place=f"pairs.jsonl, line {k + 1}")


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_third_responses_are_a_batch_of_their_own_behind_the_same_prompts(layout):
    pairs = [with_third(0), with_third(2)]
    batch = collate(pairs, 0, real=(True, False), window_pairs=7, layout=layout, third=True)
    third = batch.third
    assert (third.pair_ids, third.places) == (["id0", "id2"], ["pairs.jsonl, line 1", "pairs.jsonl, line 3"])
    assert (third.real.tolist(), third.window_pairs) == ([True, False], 7)
    assert third.targets.tolist() == [60, 62, 62, 62] and third.chosen_lengths.tolist() == [1, 3]
    assert third.input_ids.flatten()[third.predictors].tolist() == [10, 12, 62, 62]
    assert third.rejected_lengths is third.margin is third.third is None and third.token_columns == {}
    assert [(text.chosen, text.chosen_complete, text.rejected) for text in third.texts] == [
        ("t0", False, None),
        ("t2", True, None),
    ]
    alone = collate([replace(pair, chosen=pair.third, token_columns={}) for pair in pairs], 0)
    assert third.addresses == [(chosen, None) for chosen, _ in alone.addresses]
    assert (third.segments is None) == (batch.segments is None) == (layout == "padded")
    assert as_padded(batch).third.attention_mask.sum(1).tolist() == [2, 6]
    assert collate(pairs, 0).third is None


def test_a_pair_without_a_third_response_is_named():
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 2 has no third response"):
        collate([with_third(0), replace(with_third(1), third=None)], 0, third=True)


def test_a_pair_is_called_by_its_place_or_else_by_its_id():
    assert collate([with_third(0), with_third(1)], 0).names == ["pairs.jsonl, line 1", "pairs.jsonl, line 2"]
    assert collate([pair(0)], 0).names == ["pair id0"]


def test_the_source_lays_out_token_functions_and_third_responses_also_in_another_process():
    source = SealedBatches([with_third(k) for k in range(3)], 0, "shared", {"doubled": doubled}, third=True)
    batch = pickle.loads(pickle.dumps(source))[MicroBatch((2, 1), (True, True), 2)].batch
    assert batch.third.pair_ids == ["id2", "id1"]
    assert batch.token_columns["doubled"][0] == 44.0
    assert batch.to("cpu").third.targets.tolist() == [62, 62, 62, 61, 61]
