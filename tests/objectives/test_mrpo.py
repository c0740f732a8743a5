import pytest
import torch

from lit_pref.objectives import DPO, MRPO, Geometric, Requirements

ANCHOR, DECISIVE, FAR = (-13.0, -14.5), (-12.2, -16.0), (-20.0, -19.5)


def pair_with(make, *references, margin=2.0):
    """The golden pair (l_w = -12, l_l = -15) against references (r_w, r_l)."""
    inputs = make.g0(margin=margin)
    inputs.references = [make.pair([chosen], [rejected]) for chosen, rejected in references]
    return inputs


def test_mrpo_with_two_references_has_the_golden_loss(make):
    output = pair_with(make, ANCHOR, DECISIVE).into(MRPO(beta=0.1, eta=0.1))
    # x = 0.1 [3 - (log pi~_w - log pi~_l)] with the mixed scores of test_part_reference
    gap = -12.61609585066681 + 15.125468551220951
    assert output.logged["logits"].item() == pytest.approx(0.1 * (3 - gap), abs=1e-13)
    assert output.losses.item() == pytest.approx(0.6689166793471434, abs=1e-13)


def test_mrpo_with_swapped_weights_repeats_the_official_code(make):
    output = pair_with(make, ANCHOR, DECISIVE).into(MRPO(beta=0.1, eta=0.1, arwc_swap=True))
    assert output.losses.item() == pytest.approx(0.6410519338591902, abs=1e-6)


def test_mrpo_with_one_reference_is_dpo_exactly(make):
    inputs = make.random(MRPO())
    assert torch.equal(inputs.into(MRPO(beta=0.1)).losses, inputs.into(DPO(beta=0.1)).losses)


@pytest.mark.parametrize("parts", [{"weights": [1.0, 0.0, 0.0]}, {"eta": 0.0}])
def test_mrpo_with_all_weight_on_the_anchor_or_no_window_is_dpo(make, parts):
    inputs = make.random(MRPO(), references=3)
    mixed = inputs.into(MRPO(beta=0.1, **parts)).losses
    inputs.references = inputs.references[:1]
    torch.testing.assert_close(mixed, inputs.into(DPO(beta=0.1)).losses, rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [2, 5])
def test_equal_references_are_one_reference(make, count):
    inputs = make.random(MRPO())
    expected = inputs.into(DPO(beta=0.1)).losses
    inputs.references = inputs.references * count
    torch.testing.assert_close(inputs.into(MRPO(beta=0.1)).losses, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(inputs.into(DPO(beta=0.1, reference=Geometric())).losses, expected, rtol=1e-12, atol=0)


def test_references_carry_no_gradient(make):
    inputs = make.random(MRPO(), references=2)
    for reference in inputs.references:
        reference.chosen.scores.requires_grad_()
    inputs.into(MRPO()).losses.sum().backward()
    assert all(reference.chosen.scores.grad is None for reference in inputs.references)
    assert inputs.policy.chosen.scores.grad is not None


def test_the_number_of_references_follows_the_weights_and_the_swap():
    assert (MRPO().requirements.min_references, MRPO().requirements.max_references) == (1, None)
    assert MRPO(weights=[1, 1, 2]).requirements == Requirements(3, 3)
    assert MRPO(arwc_swap=True).requirements.max_references == 2
