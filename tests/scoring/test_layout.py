import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.batching.collation import collate
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.response_key import response_key
from lit_pref.scoring.layout import as_padded, padded, prefix_shared, tokens_of_pairs


def pairs_of(prompts, chosen, rejected):
    text = TruncatedText("", "", "", True, True)
    rejected = [None] * len(prompts) if rejected is None else rejected
    return [
        PreferencePair(str(k), *ids, None, None, {}, None, text)
        for k, ids in enumerate(zip(prompts, chosen, rejected, strict=True))
    ]


def test_rows_are_chosen_then_rejected_and_right_padded():
    rows = padded([[1, 2], [3]], [[4], [5, 6, 7]], [[8, 9], [10]], pad_id=99)
    assert rows.input_ids.tolist() == [[1, 2, 4, 99], [3, 5, 6, 7], [1, 2, 8, 9], [3, 10, 99, 99]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    # Row starts are 0, 4, 8, 12; the first predictor of a row is the last token of its prompt.
    assert rows.predictors.tolist() == [1, 4, 5, 6, 9, 10, 12]
    assert rows.targets.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert rows.sequences.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert rows.position_ids is None and rows.segments is None


def test_a_shared_row_holds_each_prompt_once_and_its_last_token_predicts_twice():
    rows = prefix_shared([[1, 2], [3]], [[4], [5, 6, 7]], [[8, 9], [10]])
    assert rows.input_ids.tolist() == [[1, 2, 4, 8, 9, 3, 5, 6, 7, 10]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2, 3, 1]]
    # Place 1 predicts 4 and 8, place 3 predicts 9; place 5 predicts 5 and 10, places 6 and 7 predict 6 and 7.
    assert rows.predictors.tolist() == [1, 1, 3, 5, 6, 7, 5]
    assert rows.targets.tolist() == [4, 8, 9, 5, 6, 7, 10]
    assert rows.sequences.tolist() == [0, 2, 2, 1, 1, 1, 3]
    assert rows.segments == ((2, 1, 2), (1, 3, 1))
    assert rows.attention_mask is None


def test_one_sided_data_has_a_response_a_pair():
    rows = padded([[1], [2]], [[3], [4, 5]], None, pad_id=0)
    assert rows.input_ids.tolist() == [[1, 3, 0], [2, 4, 5]]
    assert (rows.targets.tolist(), rows.sequences.tolist()) == ([3, 4, 5], [0, 1, 1])
    rows = prefix_shared([[1], [2]], [[3], [4, 5]], None)
    assert rows.input_ids.tolist() == [[1, 3, 2, 4, 5]]
    assert (rows.targets.tolist(), rows.sequences.tolist()) == ([3, 4, 5], [0, 1, 1])
    assert rows.predictors.tolist() == [0, 2, 3]
    assert rows.segments == ((1, 1, 0), (1, 2, 0))


tokens = st.lists(st.integers(0, 50), min_size=1, max_size=6)
several_pairs = st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(several_pairs, st.booleans())
def test_each_target_is_the_token_after_its_predictor(pairs, two_sided):
    prompts, chosen, rejected = (list(part) for part in zip(*pairs, strict=True))
    responses = chosen + rejected if two_sided else chosen
    rows = padded(prompts, chosen, rejected if two_sided else None, pad_id=7)
    ids, mask, predictors, targets = rows.input_ids, rows.attention_mask, rows.predictors, rows.targets
    sequences = rows.sequences
    assert torch.equal(ids.flatten()[predictors + 1], targets)
    assert torch.equal(predictors // ids.shape[1], sequences)
    assert mask.flatten()[predictors + 1].all()
    for b, response in enumerate(responses):
        assert targets[sequences == b].tolist() == response
        assert mask[b].sum() == len(prompts[b % len(prompts)]) + len(response)


@settings(max_examples=60, deadline=None)
@given(several_pairs, st.booleans())
def test_both_layouts_hold_the_same_pairs(pairs, two_sided):
    prompts, chosen, rejected = (list(part) for part in zip(*pairs, strict=True))
    made = pairs_of(prompts, chosen, rejected if two_sided else None)
    plain, packed = collate(made, pad_id=7), collate(made, pad_id=7, layout="prefix_shared")
    again = as_padded(packed, pad_id=7)
    for name in ("input_ids", "attention_mask", "predictors", "targets", "sequences", "ends"):
        assert torch.equal(getattr(again.rows, name), getattr(plain.rows, name)), name
    assert again.rows.segments is None and again.rows.position_ids is None
    assert again.pairs.response_keys == packed.pairs.response_keys == plain.pairs.response_keys
    longest = [len(p) + max(len(c), len(r) * two_sided) for p, c, r in pairs]
    assert tokens_of_pairs(plain) == tokens_of_pairs(packed) == longest


def test_an_address_is_a_matter_of_ids_and_of_where_the_prompt_ends():
    # sha256 of the int32 words 2, 5, 6, 7 (the prompt has two ids), its first 16 bytes.
    words = bytes([2, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0])
    assert response_key([5, 6], [7]) == hashlib.sha256(words).digest()[:16]
    others = [
        response_key([5], [6, 7]),
        response_key([5, 6], [8]),
        response_key([6, 5], [7]),
        response_key([5, 6], [7, 7]),
    ]
    assert len({response_key([5, 6], [7]), *others}) == 5


@pytest.mark.parametrize(
    ("prompts", "chosen", "rejected", "reason"),
    [
        ([], [], [], "at least one pair"),
        ([[]], [[1]], [[2]], "without a token"),
        ([[1]], [[1], [2]], [[2]], "1 prompts, but 2 chosen"),
        ([[1]], [[1]], [], "and 0 rejected"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(prompts, chosen, rejected, reason):
    with pytest.raises(ValueError, match=reason):
        padded(prompts, chosen, rejected, pad_id=0)
    with pytest.raises(ValueError, match=reason):
        prefix_shared(prompts, chosen, rejected)
