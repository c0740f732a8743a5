import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import SLiCHF, Smoothed


def scored(make, chosen, rejected, margin=None):
    return make.inputs(make.pair([chosen], [rejected]), [], make.batch(1, margin=margin))


def test_a_pair_within_the_margin_has_the_hinge_and_the_regulariser(make):
    # delta 4, l_w - l_l = 3: 4 - 3 + 0.5 * 12
    inputs = make.g0().policy_alone()
    assert inputs.into(SLiCHF(delta=4.0, lambd=0.5)).losses.item() == pytest.approx(1 + 6.0, abs=1e-14)
    chosen, rejected = inputs.gradients(SLiCHF(delta=4.0, lambd=0.5))
    assert chosen == [-1.5] and rejected == [1.0]


def test_a_pair_beyond_the_margin_has_the_regulariser_only(make):
    # The golden pair: delta 1 and l_w - l_l = 3
    inputs = make.g0().policy_alone()
    assert inputs.into(SLiCHF(delta=1.0, lambd=0.0)).losses.item() == 0.0
    assert inputs.into(SLiCHF(delta=1.0, lambd=0.1)).losses.item() == pytest.approx(1.2, abs=1e-15)
    assert inputs.gradients(SLiCHF(delta=1.0, lambd=0.1)) == ([-0.1], [0.0])


def test_with_a_smoothed_target_the_swapped_pair_has_the_swapped_loss(make):
    one, other = scored(make, -3.0, -3.5), scored(make, -3.5, -3.0)
    loss = 0.9 * (2.0 - 0.5) + 0.1 * (2.0 + 0.5)
    assert one.into(SLiCHF(2.0, 0.0, target=Smoothed(0.1))).losses.item() == pytest.approx(loss, abs=1e-15)
    assert other.into(SLiCHF(2.0, 0.0)).losses.item() == pytest.approx(2.5, abs=1e-15)


def test_its_rewards_are_summed_log_probs_and_it_takes_no_reference(make):
    output = make.g0().policy_alone().into(SLiCHF())
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (-12.0, -15.0)
    assert SLiCHF().requirements.max_references == 0 and SLiCHF().log_prob_parts() == ["SequenceNLL"]


def test_a_margin_that_is_not_positive_is_refused():
    with pytest.raises(UsageError, match="SLiCHF: delta is the gap"):
        SLiCHF(delta=0.0)
