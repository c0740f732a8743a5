import math

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import GPORegression

# Scores of three responses against each other, and their means, with themselves (0) included.
TABLE = [[0.0, 1.2, -0.4], [-1.2, 0.0, 0.8], [0.4, -0.8, 0.0]]
MEANS = [sum(row) / 3 for row in TABLE]


def two_of_three(make):
    """The first response as chosen and the second and third as rejected: h = 0.5, and -1 and 0.2."""
    return make.inputs(
        make.pair([0.5, 0.5], [-1.0, 0.2]),
        [make.pair([0.0, 0.0], [0.0, 0.0])],
        make.batch(2, score_chosen=[MEANS[0]] * 2, score_rejected=MEANS[1:]),
    )


def test_the_losses_are_the_golden_squares_of_both_responses(make):
    assert pytest.approx([0.26666667, -0.13333333, -0.13333333], abs=1e-8) == MEANS
    inputs = two_of_three(make)
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(GPORegression("score", beta=0.001))
    squares = [70844.69444444445, 17512.111111111106, 17831.15111111111]
    assert squares == pytest.approx([(h - s / 0.001) ** 2 for h, s in zip([0.5, -1, 0.2], MEANS, strict=True)])
    assert output.losses.tolist() == pytest.approx([squares[0] + squares[1], squares[0] + squares[2]], rel=1e-12)
    output.losses.sum().backward()
    assert inputs.policy.chosen.scores.grad.tolist() == pytest.approx([2 * (0.5 - MEANS[0] / 0.001)] * 2, rel=1e-12)
    expected = [2 * (h - s / 0.001) for h, s in zip([-1, 0.2], MEANS[1:], strict=True)]
    assert inputs.policy.rejected.scores.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_minimum_is_where_each_log_ratio_is_its_own_score_over_beta(make):
    inputs = two_of_three(make)
    inputs.policy = make.pair([MEANS[0] / 0.2] * 2, [s / 0.2 for s in MEANS[1:]])
    assert inputs.into(GPORegression("score", beta=0.2)).losses.tolist() == pytest.approx([0.0, 0.0], abs=1e-28)


def test_the_center_is_subtracted_from_both_scores(make):
    inputs = two_of_three(make)
    output = inputs.into(GPORegression("score", beta=0.5, center=0.1))
    expected = (0.5 - (MEANS[0] - 0.1) / 0.5) ** 2 + (-1 - (MEANS[1] - 0.1) / 0.5) ** 2
    assert output.losses[0].item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("center", [math.inf, math.nan])
def test_a_center_that_is_no_number_is_refused(center):
    with pytest.raises(UsageError, match="GPORegression: center must be a finite number"):
        GPORegression("score", center=center)


def test_it_requires_a_column_for_each_side():
    assert GPORegression("wins").requirements.columns == {"wins_chosen", "wins_rejected"}
    assert GPORegression("wins").requirements.min_references == 1
