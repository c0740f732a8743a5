import pytest
import torch

from lit_pref.objectives import IPO, IPOMean


def test_the_mean_form_of_ipo_has_the_golden_value_and_gradient(make):
    gap = 1 / 10 + 0.5 / 12  # h_w / n_w - h_l / n_l, nats per token
    loss = make.g0().into(IPOMean(tau=0.1)).losses.item()
    assert loss == pytest.approx((gap - 5) ** 2, abs=1e-12)
    assert loss == pytest.approx(23.603402777777777, abs=1e-12)
    chosen, rejected = make.g0().gradients(IPOMean(tau=0.1))
    assert chosen == pytest.approx([2 * (gap - 5) / 10], abs=1e-12)
    assert rejected == pytest.approx([-2 * (gap - 5) / 12], abs=1e-12)


def test_for_responses_of_one_token_it_is_the_summed_form(make):
    inputs = make.random(IPO())
    for scores in (inputs.policy, *inputs.references):
        scores.chosen.lengths, scores.rejected.lengths = torch.ones(5).long(), torch.ones(5).long()
    torch.testing.assert_close(inputs.into(IPOMean(0.3)).losses, inputs.into(IPO(0.3)).losses, rtol=1e-14, atol=0)


def test_a_policy_that_equals_its_reference_has_the_gap_as_loss_and_no_nan(make):
    inputs = make.inputs(make.pair([-5.0], [-7.0]), [make.pair([-5.0], [-7.0])], make.batch(1))
    assert inputs.into(IPOMean(tau=0.5)).losses.item() == 1.0
