"""Training loops in threads that advance one step at a time, so that contenders alternate within one process."""

import ctypes
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_work import gradient_bytes
from torch import Tensor

MIB = 2**20
Train = Callable[["Loop"], None]


class Loop:
    """A contender's training as seen from outside: the model, and the loss at the end of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.model: torch.nn.Module | None = None

    def end_step(self, model: torch.nn.Module, loss: float | Tensor) -> None:
        self.model = model
        self.losses.append(float(loss))


class SteppedLoop(Loop):
    """A training that runs in a thread of its own and rests at the end of every step.

    Only one thread ever runs: `step` gives the turn away and waits until it comes back. On a CPU the backward runs in
    the thread that asked for it, so a loop's autograd state stays its own.
    """

    def __init__(self, train: Train) -> None:
        super().__init__()
        self._train = train
        self._go, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        torch.set_num_threads(1)
        try:
            if not self._stopped:
                self._train(self)
        except BaseException as error:
            self._error = error
        self._rests.release()

    def end_step(self, model: torch.nn.Module, loss: float | Tensor) -> None:
        super().end_step(model, loss)
        self.rest()

    def rest(self) -> None:
        """Wait until the next `step` while the other loop runs; called in the training's own thread."""
        self._rests.release()
        self._go.acquire()
        if self._stopped:
            raise Stopped

    def step(self) -> None:
        """From where the loop rests to the end of its next step, or to its end after the last one."""
        self._go.release()
        self._rests.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the training where it rests, so that its memory is freed."""
        self._stopped = True
        self._go.release()
        self._thread.join()
        self.model = self._error = None


class Stopped(BaseException):
    """Ends a training from within; no `Exception`, so that no trainer handles it."""


@dataclass
class Measured:
    """The cost of a contender's steps."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def time(self, run: Callable[[], None]) -> None:
        """Process CPU time, user and system, and the time on the clock."""
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)

    def weigh(self, loop: SteppedLoop) -> None:
        """The peak of one step above what rests: activations and gradients, not weights and optimiser state.

        Lightning keeps a step's gradients until the next backward and Transformers does not: they count for both.
        """
        ctypes.CDLL(None).malloc_trim(0)
        assert loop.model is not None
        rests = status("VmRSS") - gradient_bytes(loop.model) / MIB
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        loop.step()
        self.memory_mib.append(status("VmHWM") - rests)


def status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def alternate(trains: dict[str, Train], dropped: int, timed: int, weighed: int) -> dict[str, Measured]:
    """Step A, B, C, A, B, C, ...: first steps dropped, then steps that are timed, then steps whose memory is taken.

    Memory is taken apart, because `malloc_trim` before a step makes it slower.
    """
    loops = {name: SteppedLoop(train) for name, train in trains.items()}
    measured = {name: Measured() for name in trains}
    for k in range(dropped + timed + weighed):
        for name, loop in loops.items():
            if k < dropped:
                loop.step()
            elif k < dropped + timed:
                measured[name].time(loop.step)
            else:
                measured[name].weigh(loop)
    for name, loop in loops.items():
        measured[name].losses = loop.losses
    return measured


def whole(trains: dict[str, Train], steps: int) -> dict[str, Measured]:
    """Step A, B, A, B, ... from the very beginning to the very end: loading, filling, training, all of it timed."""
    loops = {name: SteppedLoop(train) for name, train in trains.items()}
    measured = {name: Measured() for name in trains}
    for _ in range(steps + 1):
        for name, loop in loops.items():
            measured[name].time(loop.step)
    for name, loop in loops.items():
        measured[name].losses = loop.losses
    return measured
