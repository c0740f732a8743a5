"""Tests for the losses of lists against golden values, plain arithmetic and limits."""

import math

import pytest
import torch

from lit_pref.batch import PairData
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.objectives.reward.lambdarank import LambdaRank
from lit_pref.objectives.reward.listmle import ListMLE
from lit_pref.objectives.reward.listnet import ListNet
from lit_pref.objectives.reward.rankcosine import RankCosine
from lit_pref.objectives.reward.ranknet import RankNet
from lit_pref.scores import PairScores, SequenceScores

Y, S = [3.0, 1.0, 2.0, 0.0], [0.5, 0.2, -0.1, 0.4]
GOLDEN = {
    "ranknet": (RankNet(), 0.7104684921763682),
    "listnet": (ListNet(), 1.3328991835837425),
    "listmle": (ListMLE(mean=False), 3.345498523829226),
    "rankcosine": (RankCosine(centre=False), 0.2044585976603373),
    "lambdarank": (LambdaRank(), 0.5464071978001221),
}
EVERY = [objective for objective, _ in GOLDEN.values()] + [RankNet(gamma=0.5), ListMLE(), RankCosine()]
names = [repr(objective) for objective in EVERY]


def losses(objective, s, y, lists=None, dtype=torch.float64, references=()):
    """The loss of each record, and the gradient of the mean over lists."""
    length = torch.full((len(s),), 4)
    scores = torch.as_tensor(s, dtype=dtype).clone().requires_grad_()
    numbers = torch.tensor([0] * len(s) if lists is None else lists)
    columns = {"score": torch.as_tensor(y, dtype=dtype)}
    pairs = PairData([str(k) for k in range(len(s))], length, None, columns=columns, lists=numbers)
    others = [PairScores(SequenceScores(torch.as_tensor(r, dtype=dtype), length), None) for r in references]
    found = objective(PairScores(SequenceScores(scores, length), None), others, pairs).losses
    (gradient,) = torch.autograd.grad((found * pairs.weights.to(dtype)).sum() / pairs.window_pairs, scores)
    return found.detach(), gradient


@pytest.mark.parametrize("objective, expected", GOLDEN.values(), ids=GOLDEN)
def test_golden_values(objective, expected):
    found, _ = losses(objective, S, Y)
    torch.testing.assert_close(found, torch.full((4,), expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_golden_values_are_those_of_plain_arithmetic():
    better = [(i, j) for i in range(4) for j in range(4) if Y[i] > Y[j]]
    logistic = {(i, j): math.log1p(math.exp(S[j] - S[i])) for i, j in better}
    assert sum(logistic.values()) / len(better) == pytest.approx(GOLDEN["ranknet"][1], rel=1e-12)
    soft = []
    for (i, j), loss in logistic.items():
        p = 1 / (1 + math.exp((Y[j] - Y[i]) / 2))
        soft.append(p * loss + (1 - p) * (loss + S[i] - S[j]))
    assert float(losses(RankNet(gamma=0.5), S, Y)[0][0]) == pytest.approx(sum(soft) / len(better), rel=1e-12)
    z, of_y = math.log(sum(map(math.exp, S))), sum(map(math.exp, Y))
    assert sum(math.exp(y) / of_y * (z - s) for s, y in zip(S, Y, strict=True)) == pytest.approx(GOLDEN["listnet"][1])
    order = [0, 2, 1, 3]
    stages = [math.log(sum(math.exp(S[j]) for j in order[k:])) - S[i] for k, i in enumerate(order)]
    assert sum(stages) == pytest.approx(GOLDEN["listmle"][1], rel=1e-12)
    assert float(losses(ListMLE(), S, Y)[0][0]) == pytest.approx(sum(stages) / 4, rel=1e-12)
    cosine = sum(s * y for s, y in zip(S, Y, strict=True)) / math.hypot(*S) / math.hypot(*Y)
    assert (1 - cosine) / 2 == pytest.approx(GOLDEN["rankcosine"][1], rel=1e-12)
    discounts = [1 / math.log2(1 + rank) for rank in (1, 3, 4, 2)]
    ideal = sum((2**y - 1) / math.log2(k + 2) for k, y in enumerate(sorted(Y, reverse=True)))
    changes = [
        abs(2 ** Y[i] - 2 ** Y[j]) * abs(discounts[i] - discounts[j]) / ideal * logistic[i, j] for i, j in better
    ]
    assert sum(changes) == pytest.approx(GOLDEN["lambdarank"][1], rel=1e-12)


@pytest.mark.parametrize("objective", EVERY, ids=names)
def test_the_gradient_is_that_of_finite_differences(objective):
    s, step = torch.tensor(S, dtype=torch.float64), 1e-6
    _, gradient = losses(objective, s, Y)
    for k in range(4):
        change = torch.zeros(4, dtype=torch.float64)
        change[k] = step
        up, down = (losses(objective, s + sign * change, Y)[0][0] for sign in (1, -1))
        assert float((up - down) / (2 * step)) == pytest.approx(float(gradient[k]), abs=1e-8)


@pytest.mark.parametrize("objective", EVERY, ids=names)
@pytest.mark.parametrize("y", [Y, [1.0, 1.0, 0.0, 2.0]], ids=["distinct", "tied"])
def test_the_order_of_the_records_does_not_matter_nor_what_else_is_in_the_batch(objective, y):
    alone, gradient = losses(objective, S, y)
    order, other = [2, 0, 3, 1], [1.5, -0.5]
    # The records of two lists are mixed, which no batch does.
    s = [S[2], other[0], S[0], S[3], other[1], S[1]]
    mixed, of_both = losses(objective, s, [y[2], 0.0, y[0], y[3], 1.0, y[1]], [0, 7, 0, 0, 7, 0])
    torch.testing.assert_close(mixed[[0, 2, 3, 5]], alone[order])
    torch.testing.assert_close(mixed[[1, 4]], losses(objective, other, [0.0, 1.0])[0])
    # Each list counts once: in the mean over two lists, the gradient is half of the gradient alone.
    torch.testing.assert_close(2 * of_both[[0, 2, 3, 5]], gradient[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", EVERY, ids=names)
def test_extreme_scores_and_labels_give_finite_losses_and_gradients(objective):
    for y in (Y, [1e4, -1e4, 0.0, 1e4]):
        for s in ([1e4, -1e4, 0.0, 1e4], [-1e4, 1e4, 5.0, -1e4], [0.1] * 4, [0.0] * 4, [3e-8, 0.0, 0.0, 0.0]):
            found, gradient = losses(objective, s, y, dtype=torch.float32)
            assert found.isfinite().all() and gradient.isfinite().all() and (found > -1e-6).all()
    found, gradient = losses(objective, [2.0], [1.0])
    assert found.isfinite().all() and not gradient.any(), "one response has no order to learn"


@pytest.mark.parametrize("objective", [RankNet(), ListNet(), ListMLE(), RankCosine(), LambdaRank()])
def test_the_mean_of_the_scores_is_free(objective):
    shifted = [s + 3.0 for s in S]
    torch.testing.assert_close(losses(objective, shifted, Y)[0], losses(objective, S, Y)[0])
    assert not torch.allclose(
        losses(RankCosine(centre=False), shifted, Y)[0], losses(RankCosine(centre=False), S, Y)[0]
    )


@pytest.mark.parametrize("objective", EVERY, ids=names)
def test_descent_orders_a_list(objective):
    s = torch.tensor(S, dtype=torch.float64)
    for _ in range(300):
        s = s - losses(objective, s, Y)[1]
    assert s.argsort(descending=True).tolist() == [0, 2, 1, 3]


def test_with_two_responses_ranknet_is_bradley_terry_or_margin_matching_and_listmle_is_bradley_terry():
    r_w, r_l, m = [1.2, -0.3], [0.2, 0.1], [1.0, 0.25]
    length = torch.ones(2, dtype=torch.int64)
    sides = (SequenceScores(torch.tensor(r, dtype=torch.float64), length) for r in (r_w, r_l))
    pairs = PairData(["a", "b"], length, length, margin=torch.tensor(m, dtype=torch.float64))
    rewards = PairScores(*sides, log_probs=False)
    s, y, lists = [r_w[0], r_l[0], r_w[1], r_l[1]], [m[0], 0.0, m[1], 0.0], [0, 0, 1, 1]
    bradley_terry = BradleyTerry()(rewards, [], pairs).losses
    torch.testing.assert_close(losses(RankNet(), s, y, lists)[0][::2], bradley_terry)
    torch.testing.assert_close(losses(ListMLE(mean=False), s, y, lists)[0][::2], bradley_terry)
    matching = MMPO(beta=1, gamma=2.2, reference=NoReference())(rewards, [], pairs).losses
    torch.testing.assert_close(losses(RankNet(gamma=2.2), s, y, lists)[0][::2], matching)


def test_tied_labels():
    s = [0.4, -0.2, 0.1]
    log = [math.log(sum(map(math.exp, s)))] * 2 + [0.1]
    assert float(losses(ListMLE(mean=False), s, [1, 1, 0])[0][0]) == pytest.approx(sum(log) - sum(s), rel=1e-12)
    pairs = [math.log1p(math.exp(0.1 - 0.4)), math.log1p(math.exp(0.1 + 0.2))]
    assert float(losses(RankNet(), s, [1, 1, 0])[0][0]) == pytest.approx(sum(pairs) / 2, rel=1e-12), (
        "no pair of the tied"
    )


def test_a_policy_is_scored_against_its_reference_and_beta_scales_it():
    policy, reference = [-10.0, -12.0, -9.0, -11.0], [-15.0, -14.0, -8.0, -15.0]
    against, _ = losses(RankNet(beta=0.1), policy, Y, references=[reference])
    torch.testing.assert_close(against, losses(RankNet(), [0.5, 0.2, -0.1, 0.4], Y)[0])


def test_labels_of_lambdarank_count_from_the_lowest():
    torch.testing.assert_close(losses(LambdaRank(), S, [y - 7 for y in Y])[0], losses(LambdaRank(), S, Y)[0])


def test_pairs_and_impossible_arguments_are_refused():
    length = torch.ones(2, dtype=torch.int64)
    scores = PairScores(SequenceScores(torch.zeros(2), length), None)
    with pytest.raises(
        UserError, match="RankNet reads lists of responses with labels, and these data are pairs: name a"
    ):
        RankNet()(scores, [], PairData(["a", "b"], length, None, columns={"score": torch.zeros(2)}))
    for build in (lambda: RankNet(gamma=0.0), lambda: ListNet(temperature=0.0), lambda: ListMLE(beta=math.inf)):
        with pytest.raises(UsageError, match=r"must be (positive and finite|above 0), got"):
            build()


def test_the_weights_of_records_add_up_to_the_number_of_lists():
    length = torch.ones(6, dtype=torch.int64)
    real = torch.tensor([True] * 5 + [False])
    pairs = PairData(list("abcdef"), length, None, is_real=real, lists=torch.tensor([0, 0, 0, 1, 1, 2]))
    torch.testing.assert_close(pairs.weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5, 0.5, 0.0]))
    assert pairs.window_pairs == 2
    assert (RankNet().requirements | BradleyTerry().requirements).lists and not BradleyTerry().requirements.lists
