"""Loops alternate step by step, and what is measured of a step is that step's."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from bench_steps import Loop, alternate, whole


def test_loops_take_their_steps_in_turn():
    order: list[str] = []

    def train(name: str, loop: Loop) -> None:
        for step in range(4):
            order.append(f"{name}{step}")
            loop.end_step(torch.nn.Linear(1, 1), float(step))

    trains = {name: lambda loop, name=name: train(name, loop) for name in "xyz"}
    measured = alternate(trains, dropped=1, timed=2, weighed=1)
    assert order == [f"{name}{step}" for step in range(4) for name in "xyz"]
    for numbers in measured.values():
        assert (len(numbers.cpu_s), len(numbers.memory_mib)) == (2, 1)
        assert numbers.losses == [0.0, 1.0, 2.0, 3.0]


def test_a_step_is_charged_with_its_own_work_and_memory():
    def busy(loop: Loop) -> None:
        for _ in range(3):
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass
            torch.ones(48 * 2**18).sum()  # 48 MiB
            loop.end_step(torch.nn.Linear(1, 1), 0.0)

    def idle(loop: Loop) -> None:
        for _ in range(3):
            loop.end_step(torch.nn.Linear(1, 1), 0.0)

    measured = alternate({"busy": busy, "idle": idle}, dropped=1, timed=1, weighed=1)
    assert measured["busy"].cpu_s[0] > 0.045 > measured["idle"].cpu_s[0]
    assert measured["busy"].memory_mib[0] == pytest.approx(48, abs=2)
    assert measured["idle"].memory_mib[0] == pytest.approx(0, abs=2)


def test_gradients_that_a_loop_keeps_between_steps_count():
    model = torch.nn.Linear(2**10, 2**14, bias=False)  # 64 MiB

    def keeps(loop: Loop) -> None:
        for _ in range(2):
            model.weight.grad = torch.ones_like(model.weight)
            loop.end_step(model, 0.0)

    def frees(loop: Loop) -> None:
        for _ in range(2):
            gradient = torch.ones(2**14, 2**10)
            del gradient
            loop.end_step(torch.nn.Linear(1, 1), 0.0)

    measured = alternate({"keeps": keeps, "frees": frees}, dropped=1, timed=0, weighed=1)
    # The new gradient is made before the old one goes.
    assert measured["keeps"].memory_mib[0] == pytest.approx(128, abs=3)
    assert measured["frees"].memory_mib[0] == pytest.approx(64, abs=3)


def test_whole_runs_include_what_comes_before_and_after_the_steps():
    done: list[str] = []

    def train(loop: Loop) -> None:
        done.append("begin")
        loop.end_step(torch.nn.Linear(1, 1), 0.0)
        done.append("end")

    measured = whole({"one": train}, steps=1)
    assert done == ["begin", "end"]
    assert len(measured["one"].cpu_s) == 2


def test_an_error_in_a_loop_is_raised_where_it_was_told_to_go_on():
    def fails(loop: Loop) -> None:
        raise ZeroDivisionError("in the loop")

    with pytest.raises(ZeroDivisionError, match="in the loop"):
        alternate({"fails": fails}, dropped=1, timed=0, weighed=0)
