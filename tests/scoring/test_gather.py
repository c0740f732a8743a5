"""The gather with a gradient made of gathers, against torch's."""

import pytest
import torch

from lit_pref.scoring.gather import GatheredRows
from lit_pref.scoring.layout import padded, prefix_shared

INDEX = [0, 1, 2, 3, 4, 0, 1, 5, 6, 8, 7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_index_select_to_the_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(9, 2, 3, generator=generator, dtype=dtype, requires_grad=True)
    upstream = torch.randn(len(INDEX), 2, 3, generator=generator, dtype=dtype)
    found, expected = GatheredRows.of(INDEX)(tensor), tensor.index_select(0, torch.tensor(INDEX))
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(output, tensor, upstream)[0] for output in (found, expected)]
    assert torch.equal(*gradients)


def test_its_gradient_is_the_derivative():
    tensor = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GatheredRows.of(INDEX), tensor)


def test_a_row_that_is_read_once_takes_nothing_from_a_gradient_that_is_not_finite_elsewhere():
    tensor = torch.zeros(3, 1, requires_grad=True)
    upstream = torch.tensor([[1.0], [torch.inf], [2.0], [torch.nan]])
    (gradient,) = torch.autograd.grad(GatheredRows.of([0, 1, 2, 1])(tensor), tensor, upstream)
    assert gradient[[0, 2]].flatten().tolist() == [1.0, 2.0] and gradient[1].isnan()


@pytest.mark.parametrize("index", [[0, 2], [0, 1, 0, 0]])
def test_a_row_that_is_missing_or_read_three_times_is_refused(index):
    with pytest.raises(ValueError, match="once or twice"):
        GatheredRows.of(index)


def test_no_hidden_state_predicts_more_than_two_tokens():
    # So the gradient of the head's gather, `index_select`, adds at most two terms to zero, in whatever order CUDA's
    # atomic additions come: the sum has the same bits.
    prompts, chosen, rejected = [[5, 6], [7]], [[8], [9, 10]], [[11, 12], [13]]
    assert padded(prompts, chosen, rejected, pad_id=0).predictors.bincount().max() == 1
    assert prefix_shared(prompts, chosen, rejected).predictors.bincount().max() == 2
