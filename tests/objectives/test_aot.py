import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import AOT, DPO


def softplus(z):
    return math.log1p(math.exp(z))


def three_pairs(make, is_real=None):
    """l_w - l_l = 2, -1, 4; r_w - r_l = 0.5, -0.5, 1; h_w = 1, 0.5, 0 and h_l = -0.5, 1, -3."""
    inputs = make.inputs(
        make.pair([-10, -20, -5], [-12, -19, -9]),
        [make.pair([-11, -20.5, -5], [-11.5, -20, -6])],
        make.batch(3, is_real=is_real),
    )
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    return inputs


def gradients(inputs, losses):
    return [
        g.tolist() for g in torch.autograd.grad(losses, [inputs.policy.chosen.scores, inputs.policy.rejected.scores])
    ]


def test_paired_quantiles_of_the_policy_are_compared_with_those_of_the_reference(make):
    inputs = three_pairs(make)
    output = inputs.into(AOT(beta=0.1))
    # Sorted: -1, 2, 4 against -0.5, 0.5, 1; the loss of each quantile goes to the pair of the policy's value.
    assert output.losses.tolist() == pytest.approx([softplus(-0.15), softplus(0.05), softplus(-0.3)], abs=1e-15)
    chosen, rejected = gradients(inputs, output.losses.sum())
    slopes = [0.1 / (1 + math.exp(z)) for z in (0.15, -0.05, 0.3)]
    assert chosen == pytest.approx([-slope for slope in slopes], abs=1e-15)
    assert rejected == pytest.approx(slopes, abs=1e-15)


def test_differences_of_the_reference_keep_their_digits_beside_log_probs_of_ten_thousand_nats(make):
    inputs = make.inputs(
        make.pair([-1e4] * 5 + [-1.0], [-1.1, -1.3, -1.7, -2.1, -2.3, -0.5]),
        [make.pair([-0.3] * 6, [-0.2] * 6)],
        make.batch(6),
    )
    for scores in (inputs.policy, *inputs.references):
        for side in (scores.chosen, scores.rejected):
            side.scores = side.scores.float()
    # r_w - r_l is -0.1 for every pair, with which the largest value of the policy, -1 + 0.5, is compared.
    losses = inputs.into(AOT(beta=1.0)).losses
    assert losses[-1].item() == pytest.approx(softplus(0.4), rel=1e-6)


def test_unpaired_quantiles_of_chosen_responses_are_compared_with_those_of_rejected_ones(make):
    inputs = three_pairs(make)
    output = inputs.into(AOT(beta=0.1, unpaired=True))
    # h_w sorted: 0, 0.5, 1; h_l sorted: -3, -0.5, 1: so the pairs' d are 1 - 1, 0.5 + 0.5 and 0 + 3.
    assert output.losses.tolist() == pytest.approx([softplus(0.0), softplus(-0.1), softplus(-0.3)], abs=1e-15)
    chosen, rejected = gradients(inputs, output.losses.sum())
    slopes = [0.1 / (1 + math.exp(z)) for z in (0.0, 0.1, 0.3)]
    assert chosen == pytest.approx([-slope for slope in slopes], abs=1e-15)
    # The rejected response of pair 1 was compared with the chosen one of pair 0, and the other way round.
    assert rejected == pytest.approx([slopes[1], slopes[0], slopes[2]], abs=1e-15)


@pytest.mark.parametrize("unpaired", [False, True])
def test_one_pair_is_dpo(make, unpaired):
    objective = AOT(beta=0.1, unpaired=unpaired)
    alone = make.g0()
    assert alone.into(objective).losses.item() == pytest.approx(0.6209570477895321, abs=1e-15)
    assert objective.batch_coupled  # with which the first lines of a run warn of micro-batches of one pair


@pytest.mark.parametrize("unpaired", [False, True])
def test_fillers_do_not_enter_the_sorting(make, unpaired):
    objective = AOT(beta=0.1, unpaired=unpaired)
    padded = three_pairs(make, is_real=[True, False, True])
    losses = padded.into(objective).losses
    plain = three_pairs(make).select([0, 2]).into(objective).losses
    assert torch.equal(losses[[0, 2]], plain)
    # A filler is compared with itself: finite, and with a gradient for a micro-batch of nothing else.
    alone = three_pairs(make, is_real=[False] * 3)
    losses = alone.into(objective).losses
    torch.testing.assert_close(losses, alone.into(DPO(beta=0.1)).losses, rtol=0, atol=1e-15)
    assert losses.requires_grad


@pytest.mark.parametrize("unpaired", [False, True])
def test_the_mean_is_that_of_dpo_if_the_ranks_are_already_those_of_the_pairs(make, unpaired):
    inputs = make.inputs(make.pair([1, 2, 3], [0.1, 0.2, 0.4]), [make.pair([0.0, 0.1, 0.2], [0.0] * 3)], make.batch(3))
    ours, dpo = inputs.into(AOT(beta=0.3, unpaired=unpaired)).losses, inputs.into(DPO(beta=0.3)).losses
    torch.testing.assert_close(ours, dpo, rtol=0, atol=1e-15)


def test_the_loss_depends_on_the_cut_into_micro_batches(make):
    """As it must: it is stated by the class, and the contract of all objectives exempts it by that flag alone."""
    objective = AOT(beta=0.1, unpaired=True)
    whole = three_pairs(make).into(objective).losses.mean().item()
    cut = torch.cat([three_pairs(make).select(part).into(objective.eval()).losses for part in ([0], [1, 2])]).mean()
    assert whole != pytest.approx(cut.item(), abs=1e-4)
    assert AOT.batch_coupled and not DPO.batch_coupled


def test_label_smoothing_mixes_the_losses_of_both_signs(make):
    output = make.g0().into(AOT(beta=0.1, label_smoothing=0.1))
    assert output.losses.item() == pytest.approx(0.9 * softplus(-0.15) + 0.1 * softplus(0.15), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6359570477895321, abs=1e-15)


@pytest.mark.parametrize("smoothing", [-0.1, 0.6, math.nan])
def test_a_smoothing_out_of_bounds_is_refused(smoothing):
    with pytest.raises(UsageError, match=r"AOT: label_smoothing must be in \[0, 0.5\]"):
        AOT(label_smoothing=smoothing)
