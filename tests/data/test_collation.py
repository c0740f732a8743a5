"""Pairs become a batch: nothing is lost, reordered or rounded on the way."""

import pickle

import pytest
import torch

from lit_pref.data.collation import SealedBatches, collate
from lit_pref.data.sampling import MicroBatch
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
