"""Rates worked out by hand; that the Trainer uses them per optimiser step is tested where training is."""

import math

import pytest

from lit_pref.errors import UsageError
from lit_pref.modules.schedules import Cosine, Flat, Linear, Schedule


@pytest.mark.parametrize("schedule", [Cosine(warmup=0.2), Linear(warmup=0.2), Flat(warmup=0.2), Linear(warmup=2)])
def test_warm_up_rises_to_the_peak_in_a_share_or_a_number_of_steps(schedule: Schedule):
    assert [schedule.factor(step, 10) for step in range(3)] == [0.5, 1.0, 1.0]


def test_decay_ends_at_the_floor():
    assert Cosine(warmup=0, floor=0.1).factor(10, 10) == pytest.approx(0.1)
    assert Linear(warmup=0, floor=0.1).factor(10, 10) == pytest.approx(0.1)
    assert Flat(warmup=0, floor=0.1).factor(10, 10) == 1.0


def test_decay_in_the_middle():
    assert Linear(warmup=0, floor=0.2).factor(5, 10) == pytest.approx(0.6)  # 0.2 + 0.8 / 2
    assert Cosine(warmup=0, floor=0.2).factor(2, 8) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_what_no_schedule_can_mean_is_refused():
    with pytest.raises(UsageError, match="warmup is -1"):
        Linear(warmup=-1)
    with pytest.raises(UsageError, match="floor is 2"):
        Cosine(floor=2)
