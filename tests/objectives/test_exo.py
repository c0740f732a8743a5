import math

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import EXO

Q = 1 / (1 + math.exp(-0.15))  # sigmoid(x) of the golden pair


def test_exo_has_the_golden_value_and_gradient(make):
    loss = make.g0().into(EXO()).losses.item()
    assert loss == pytest.approx(Q * math.log(Q / 0.999) + (1 - Q) * math.log((1 - Q) / 0.001), abs=1e-14)
    assert loss == pytest.approx(2.5055165554778713, abs=1e-14)
    # dKL/dx = q (1 - q) (x - log(p / (1 - p)))
    slope = Q * (1 - Q) * (0.15 - math.log(0.999 / 0.001))
    chosen, rejected = make.g0().gradients(EXO())
    assert chosen == pytest.approx([0.1 * slope], abs=1e-14) and rejected == pytest.approx([-0.1 * slope], abs=1e-14)


def test_the_loss_is_zero_where_the_policy_has_the_probability_of_a_right_label(make):
    gap = math.log(0.8 / 0.2) / 0.1
    inputs = make.inputs(make.pair([-10.0], [-10.0 - gap]), [make.pair([-3.0], [-3.0])], make.batch(1))
    assert inputs.into(EXO(epsilon=0.2)).losses.item() == pytest.approx(0.0, abs=1e-14)
    assert inputs.gradients(EXO(epsilon=0.2))[0] == pytest.approx([0.0], abs=1e-14)


def test_a_clearly_misranked_pair_has_hardly_a_gradient(make):
    inputs = make.inputs(make.pair([-400.0], [0.0]), [make.pair([0.0], [0.0])], make.batch(1))
    assert abs(inputs.gradients(EXO())[0][0]) < 1e-14
    # KL(0 || p) = -log(1 - p)
    assert inputs.into(EXO()).losses.item() == pytest.approx(-math.log(0.001), abs=1e-12)


def test_epsilon_zero_which_makes_the_loss_infinite_is_refused():
    with pytest.raises(UsageError, match="EXO: ReverseKL is infinite if the target is 1"):
        EXO(epsilon=0.0)
