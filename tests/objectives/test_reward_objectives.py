"""Tests for the objectives of reward models against golden values and limits."""

import math

import pytest
import torch

from lit_pref.batch import PairData
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.offset import ColumnOffset
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.target import MarginTarget
from lit_pref.objectives.parts.terms import Center
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.objectives.reward.gpm import GPM
from lit_pref.objectives.reward.pcrm import PCRM, CosineColumn, LengthRatio, TokenPCRM, diverged
from lit_pref.objectives.reward.regression import ScoreRegression
from lit_pref.scores import PairScores, SequenceScores, TokenRewards


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def scored(chosen, rejected, lengths=None, tokens=None):
    """Rewards of both responses as a reward model gives them."""
    sides = []
    for k, rewards in enumerate((chosen, rejected)):
        length = torch.ones(len(rewards), dtype=torch.int64) if lengths is None else torch.tensor(lengths[k])
        statistics = {} if tokens is None else {TokenRewards(): double(tokens[k])}
        sides.append(SequenceScores(double(rewards).requires_grad_(), length, statistics))
    return PairScores(*sides, log_probs=False)


def pairs(size, margin=None, tokens=None, **columns):
    return PairData(
        [str(k) for k in range(size)],
        torch.ones(size, dtype=torch.int64),
        torch.ones(size, dtype=torch.int64),
        margin=None if margin is None else double(margin),
        columns={name: double(values) for name, values in columns.items()},
        token_columns={} if tokens is None else {"diverged": (double(tokens[0]), double(tokens[1]))},
    )


def test_margin_matching_of_rewards_has_the_golden_values_and_cannot_broadcast():
    objective = MMPO(beta=1, gamma=2.2, reference=NoReference())
    scores = scored([1.2, -0.3], [0.2, 0.1])
    losses = objective(scores, [], pairs(2, [1.0, 0.25])).losses
    torch.testing.assert_close(losses, double([0.413012176637908, 0.766669488804273]))
    assert losses.mean().item() == pytest.approx(0.5898408327210904, abs=1e-12)
    # The official code multiplies rewards (B, 1) by probabilities (B,): every pair gets the mean probability.
    p = torch.sigmoid(2.2 * double([1.0, 0.25]))
    d = double([1.0, -0.4])[:, None]
    wrong = (-p * torch.nn.functional.logsigmoid(d) - (1 - p) * torch.nn.functional.logsigmoid(-d)).mean()
    assert wrong.item() == pytest.approx(0.6829807046754204, abs=1e-12)
    column = PairScores(
        SequenceScores(scores.chosen.scores[:, None], scores.chosen.lengths), scores.rejected, log_probs=False
    )
    with pytest.raises(ValueError, match=r"must be \(B,\)"):
        objective(column, [], pairs(2, [1.0, 0.25]))


def test_bradley_terry_and_its_limits():
    scores = scored([1.2, -0.3, 0.4], [0.2, 0.1, 0.4])
    losses = BradleyTerry()(scores, [], pairs(3)).losses
    expected = double([math.log1p(math.exp(-d)) for d in (1.0, -0.4, 0.0)])
    torch.testing.assert_close(losses, expected)
    margin = [0.5, 1.0, 2.0]
    offset = BradleyTerry(offset=ColumnOffset("margin"))(scores, [], pairs(3, margin)).losses
    expected = double([math.log1p(math.exp(-(d - m))) for d, m in zip((1.0, -0.4, 0.0), margin, strict=True)])
    torch.testing.assert_close(offset, expected)
    soft = BradleyTerry(target=MarginTarget(2.2))(scores, [], pairs(3, margin)).losses
    torch.testing.assert_close(
        soft, MMPO(beta=1, gamma=2.2, reference=NoReference())(scores, [], pairs(3, margin)).losses
    )
    hard = MMPO(beta=1, gamma=math.inf, reference=NoReference())(scores, [], pairs(3, margin)).losses
    torch.testing.assert_close(hard, losses)
    centred = BradleyTerry(terms=[Center(0.01)])(scores, [], pairs(3)).losses
    torch.testing.assert_close(centred, losses + 0.01 * double([1.4, -0.2, 0.8]).square())


def test_gpm_has_the_golden_values():
    half = double([-0.97, 1.0]) / 2
    scores = scored(half.tolist(), (-half).tolist())
    losses = GPM(tau=0.1)(scores, [], pairs(2)).losses
    torch.testing.assert_close(losses, double([9.700061281617296, 4.539889921686465e-05]))
    half = double([-0.9067004593707638, 1.0]) / 2
    normal = GPM(tau=0.1)(scored(half.tolist(), (-half).tolist()), [], pairs(2)).losses
    assert normal.mean().item() == pytest.approx(4.533582698836923, abs=1e-12)
    # With v = (r, 1), s is a difference of rewards: Bradley-Terry.
    rewards = scored([1.2, -0.3], [0.2, 0.1])
    torch.testing.assert_close(GPM(tau=1.0)(rewards, [], pairs(2)).losses, BradleyTerry()(rewards, [], pairs(2)).losses)
    with pytest.raises(UsageError, match="positive and finite"):
        GPM(tau=0)


def test_pcrm_has_the_golden_values_and_bradley_terry_as_its_limit():
    d, similarity = [1.5, 6.0, -0.5], [0.8, 0.8, 0.5]
    objective = PCRM(similarity=CosineColumn("s", angular=False), reference=NoReference())
    scores = scored(d, [0.0, 0.0, 0.0])
    losses = objective(scores, [], pairs(3, s=similarity)).losses
    torch.testing.assert_close(losses, double([0.2016231749113302, 0.021195670164589918, 0.9740769841892303]))
    cap = objective.terms[0]
    expected = double([9.968789013732831, 9.968789013732831, 24.92015968063872])
    torch.testing.assert_close(cap.delta(scores, pairs(3, s=similarity)), expected)
    far = PCRM(b3=1e6, similarity=CosineColumn("s"), reference=NoReference())
    torch.testing.assert_close(
        far(scores, [], pairs(3, s=similarity)).losses, BradleyTerry()(scores, [], pairs(3)).losses
    )
    # The minimum of one pair is at delta / 2.
    at = scored([9.968789013732831 / 2], [0.0])
    objective(at, [], pairs(1, s=[0.8])).losses.sum().backward()
    assert at.chosen.scores.grad.abs().item() < 1e-12


def test_angular_similarity_has_the_golden_values():
    found = CosineColumn("c")(scored([0.0] * 3, [0.0] * 3), pairs(3, c=[0.9, 0.2, -0.3]))
    torch.testing.assert_close(found, double([0.8564337068712937, 0.5640942168489749, 0.5]))


def test_length_ratio_counts_from_the_first_difference():
    marks = [diverged([1], chosen, rejected) for chosen, rejected in (([5, 6, 7, 8], [5, 9]), ([5, 6], [5, 6, 7]))]
    assert marks[0] == ([0, 1, 1, 1], [0, 1]) and marks[1] == ([0, 0], [0, 0, 1])
    tokens = [[m[0] + [0.0] * (4 - len(m[0])) for m in marks], [m[1] + [0.0] * (3 - len(m[1])) for m in marks]]
    found = LengthRatio()(scored([0.0, 0.0], [0.0, 0.0]), pairs(2, tokens=tokens))
    torch.testing.assert_close(found, double([1 / 3, 0.0]))


def test_token_form_of_pcrm_is_the_mean_over_tokens_and_ignores_padding():
    chosen, rejected = [0.1, 0.5, 0.9], [0.1, -0.2]
    tokens = [[0.0, 1.0, 1.0], [0.0, 1.0]]

    def losses(padding):
        values = [[chosen + [padding] * 2], [[*rejected, padding]]]
        marks = [[tokens[0] + [0.0] * 2], [tokens[1] + [0.0]]]
        scores = scored([0.9], [-0.2], lengths=[[3], [2]], tokens=values)
        return TokenPCRM()(scores, [], pairs(1, tokens=marks)).losses

    delta = 20 / (0.5 + 0.001) - 15
    terms = [math.log1p(math.exp(-d)) + math.log1p(math.exp(-(delta - d))) for d in (0.5 + 0.2, 0.9 + 0.2)]
    torch.testing.assert_close(losses(0.0), double([sum(terms) / 2]))
    torch.testing.assert_close(losses(77.0), losses(0.0))


def test_the_token_form_with_one_token_is_the_sequence_form():
    scores = scored([1.5, -0.5], [0.2, 0.4], tokens=[[[1.5], [-0.5]], [[0.2], [0.4]]])
    marks = [[[1.0], [1.0]], [[1.0], [1.0]]]
    token = TokenPCRM()(scores, [], pairs(2, tokens=marks)).losses
    torch.testing.assert_close(token, PCRM(reference=NoReference())(scores, [], pairs(2, tokens=marks)).losses)


def test_regression_is_half_the_sum_of_squares():
    data = pairs(2, score_chosen=[4.0, 2.0], score_rejected=[1.0, 2.0])
    scores = scored([1.0, 0.5], [0.5, -1.0])
    losses = ScoreRegression(scale=0.5)(scores, [], data).losses
    torch.testing.assert_close(losses, double([(1.0**2 + 0.0) / 2, (0.5**2 + 2.0**2) / 2]))
    with pytest.raises(UserError, match="`score_chosen`"):
        ScoreRegression()(scores, [], pairs(2))


@pytest.mark.parametrize(
    "objective, data",
    [
        (BradleyTerry(), pairs(3)),
        (MMPO(beta=1, gamma=1.1, reference=NoReference()), pairs(3, [1.0, 0.0, 2.0])),
        (PCRM(similarity=CosineColumn("s"), reference=NoReference()), pairs(3, s=[0.9, 0.1, 0.5])),
        (GPM(), pairs(3)),
        (ScoreRegression(), pairs(3, score_chosen=[1.0, 2.0, 3.0], score_rejected=[0.0, 1.0, 1.0])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradients_are_those_of_finite_differences(objective, data):
    def losses(chosen, rejected):
        ones = torch.ones(3, dtype=torch.int64)
        scores = PairScores(SequenceScores(chosen, ones), SequenceScores(rejected, ones), log_probs=False)
        return objective(scores, [], data).losses

    inputs = double([0.3, -1.2, 2.0]).requires_grad_(), double([0.1, 0.4, -0.7]).requires_grad_()
    assert torch.autograd.gradcheck(losses, inputs)
