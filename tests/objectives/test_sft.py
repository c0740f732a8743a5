import pytest
import torch

from lit_pref.objectives import SFT


def test_sft_is_the_negative_log_prob_per_response_token_and_needs_no_rejected_side(make):
    inputs = make.inputs(make.pair([-12.0, -3.0], [0.0, 0.0], [10, 2]), [], make.batch(2))
    inputs.policy.rejected = None
    inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(SFT())
    assert output.losses.tolist() == pytest.approx([1.2, 1.5], abs=1e-15)
    assert output.chosen_rewards.tolist() == [-12.0, -3.0]
    assert output.rejected_rewards is None
    output.losses.sum().backward()
    # Every pair counts the same, whatever its length: -1 / n.
    assert inputs.policy.chosen.scores.grad.tolist() == pytest.approx([-0.1, -0.5], abs=1e-15)


def test_sft_takes_no_reference(make):
    assert (SFT().requirements.min_references, SFT().requirements.max_references) == (0, 0)
    with pytest.raises(ValueError, match="takes 0 to 0 references, got 1"):
        make.random(SFT(), references=1).into(SFT())


def test_sft_reads_the_chosen_side_only(make):
    inputs = make.random(SFT())
    assert inputs.policy.rejected is None
    before = inputs.into(SFT()).losses
    inputs.policy.rejected = make.side(torch.full((5,), 3.0))
    assert torch.equal(inputs.into(SFT()).losses, before)
