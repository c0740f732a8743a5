import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.scoring.layout import padded


def test_rows_are_chosen_then_rejected_and_right_padded():
    ids, mask, predictors, targets, sequences = padded([[1, 2], [3]], [[4], [5, 6, 7]], [[8, 9], [10]], pad_id=99)
    assert ids.tolist() == [[1, 2, 4, 99], [3, 5, 6, 7], [1, 2, 8, 9], [3, 10, 99, 99]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    # Row starts are 0, 4, 8, 12; the first predictor of a row is the last token of its prompt.
    assert predictors.tolist() == [1, 4, 5, 6, 9, 10, 12]
    assert targets.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert sequences.tolist() == [0, 1, 1, 1, 2, 2, 3]


def test_one_sided_data_has_a_row_a_pair():
    ids, _, _, targets, sequences = padded([[1], [2]], [[3], [4, 5]], None, pad_id=0)
    assert ids.tolist() == [[1, 3, 0], [2, 4, 5]]
    assert targets.tolist() == [3, 4, 5]
    assert sequences.tolist() == [0, 1, 1]


tokens = st.lists(st.integers(0, 50), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=4), st.booleans())
def test_each_target_is_the_token_after_its_predictor(pairs, two_sided):
    prompts, chosen, rejected = (list(part) for part in zip(*pairs, strict=True))
    responses = chosen + rejected if two_sided else chosen
    ids, mask, predictors, targets, sequences = padded(prompts, chosen, rejected if two_sided else None, pad_id=7)
    assert torch.equal(ids.flatten()[predictors + 1], targets)
    assert torch.equal(predictors // ids.shape[1], sequences)
    assert mask.flatten()[predictors + 1].all()
    for b, response in enumerate(responses):
        assert targets[sequences == b].tolist() == response
        assert mask[b].sum() == len(prompts[b % len(prompts)]) + len(response)


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
