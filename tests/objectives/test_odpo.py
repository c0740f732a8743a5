import math

import pytest
import torch

from lit_pref.errors import UserError
from lit_pref.objectives import DPO, MMPO, ODPO


def test_odpo_has_the_golden_value_and_gradient(make):
    x = 0.1 * 1.5 - math.log(2)
    assert make.g0(margin=2.0).into(ODPO()).losses.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-14)
    assert make.g0(margin=2.0).into(ODPO()).losses.item() == pytest.approx(1.001152315758658, abs=1e-14)
    chosen, rejected = make.g0(margin=2.0).gradients(ODPO())
    slope = -0.1 / (1 + math.exp(x))
    assert chosen == pytest.approx([slope], abs=1e-15) and rejected == pytest.approx([-slope], abs=1e-15)


def test_without_strength_or_at_a_margin_of_one_it_is_dpo(make):
    dpo = make.g0().into(DPO()).losses
    assert torch.equal(make.g0(margin=7.0).into(ODPO(alpha=0.0)).losses, dpo)
    assert torch.equal(make.g0(margin=1.0).into(ODPO(alpha=3.0)).losses, dpo)


def test_a_margin_below_one_lowers_the_loss_and_a_huge_one_raises_it(make):
    low, one, high = (make.g0(margin=m).into(ODPO()).losses.item() for m in (1e-3, 1.0, 1e3))
    assert low < one < high < math.log(1e3) + 1


def test_a_tie_has_no_logarithm_and_is_refused_by_name(make):
    with pytest.raises(UserError, match=r"pair pair-0 has the margin 0\.0: drop ties"):
        make.g0(margin=0.0).into(ODPO())


def test_a_margin_in_target_and_offset_is_warned_of(make):
    with pytest.warns(UserWarning, match="the margin is used twice"):
        ODPO(target=MMPO().target)
