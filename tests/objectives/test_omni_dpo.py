import math

import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import CalibratedNLL, Mean, OmniDPO, Pairwise


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


X = 2.0 * (1 / 10 + 0.5 / 12)  # beta (h_w / n_w - h_l / n_l) of the golden pair
Z = 2.0 * (-12 / 10 + 15 / 12) - 0.8  # beta (a_w - a_l) - tau_ref
QUALITY = sigmoid(0.7 * 2.0)


def test_omni_dpo_has_the_loss_written_out_and_a_gradient_through_the_weight(make):
    fit = (1 - sigmoid(Z)) ** 3
    inputs = make.g0(margin=2.0, score_chosen=5.0)
    # h_w = 1 > 0: the negative log-likelihood does not count.
    assert inputs.into(OmniDPO()).losses.item() == pytest.approx(QUALITY * fit * math.log1p(math.exp(-X)), abs=1e-15)
    # d/da_w of fit^3 softplus(-x): both factors depend on the policy
    slope = -3 * sigmoid(Z) * fit * math.log1p(math.exp(-X)) - fit * (1 - sigmoid(X))
    chosen, rejected = inputs.gradients(OmniDPO())
    assert chosen == pytest.approx([2.0 * QUALITY * slope / 10], abs=1e-15)
    assert rejected == pytest.approx([-2.0 * QUALITY * slope / 12], abs=1e-15)


def test_the_likelihood_term_counts_good_responses_that_fell_below_the_reference(make):
    def added(reference, score):
        inputs = make.g0(score_chosen=score)
        inputs.references[0].chosen.scores = torch.tensor([reference], dtype=torch.float64)
        return (inputs.into(OmniDPO(lambd=0.5)).losses - inputs.into(OmniDPO(lambd=0.0)).losses).item()

    # l_w = -12 of 10 tokens
    assert added(-11.0, 3.2) == pytest.approx(0.5 * 1.2, abs=1e-15)
    assert added(-12.0, 3.2) == added(-13.0, 3.2) == added(-11.0, 3.1) == 0.0


def test_without_weights_it_is_half_of_dpos_loss_per_token(make):
    inputs = make.random(OmniDPO())
    found = inputs.into(OmniDPO(eta=0.0, gamma=0.0, lambd=0.0)).losses
    torch.testing.assert_close(found, inputs.into(Pairwise(beta=2.0, tokens=Mean())).losses / 2, rtol=1e-14, atol=0)


def test_a_pair_far_learned_has_no_loss_and_one_far_from_it_the_whole(make):
    inputs = make.inputs(
        make.pair([0.0, -1e4], [-1e4, 0.0], [1, 1], [1, 1]),
        [make.pair([0.0, 0.0], [0.0, 0.0], [1, 1], [1, 1])],
        make.batch(2, margin=[1e3, 1e3], score_chosen=[0.0, 0.0]),
    )
    assert inputs.into(OmniDPO()).losses.tolist() == pytest.approx([0.0, 2e4])


def test_the_score_is_required_unless_its_term_has_no_weight(make):
    assert OmniDPO().requirements.columns == {"margin", "score_chosen"}
    assert OmniDPO(lambd=0.0).requirements.columns == {"margin"}
    with pytest.raises(UserError, match="CalibratedNLL needs the field `score_chosen`"):
        make.g0().into(OmniDPO())
    with pytest.raises(UsageError, match="CalibratedNLL: coefficient must be finite and >= 0"):
        CalibratedNLL(-0.1)
    with pytest.raises(UsageError, match="OmniDPO: lambd must be finite and >= 0"):
        OmniDPO(lambd=-0.1)
    with pytest.raises(UsageError, match="OmniDPO: eta and gamma must be finite and >= 0"):
        OmniDPO(gamma=-1.0)
