"""The training metrics of a run: means over pairs, speed, memory, gradient norm and learning rate."""

import resource
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_pref.metrics.accumulator import TrainAccumulator


class TrainingLog:
    """Collects training metrics between two log lines."""

    def __init__(self) -> None:
        self.pairs = TrainAccumulator()
        self.throughput = Throughput()
        self.gradient_norm: float | None = None  # gradient norm before clipping, of the step that is logged next
        self.learning_rate = 0.0

    def is_due(self, step: int, every: int) -> bool:
        """Whether to log at optimizer step `step`, given the logging interval; true only once per step."""
        return step != self.throughput.step and step % every == 0

    def take(
        self, step: int, sum_over_ranks: Callable[[Tensor], Tensor], progress: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the metrics since the last call and reset them; one reduction over ranks.

        Args:
            step: the optimizer step.
            sum_over_ranks: returns the sum of a tensor over all ranks.
            progress: state of the objective to log.
        """
        numbers = self.pairs.flush(sum_over_ranks)
        numbers |= self.throughput.take(step, numbers)
        numbers |= {f"train/state/{name}": value for name, value in progress.items()}
        if self.gradient_norm is not None:
            numbers["train/gradient_norm"] = self.gradient_norm
        self.gradient_norm = None
        numbers["train/learning_rate"] = self.learning_rate
        return numbers


class Throughput:
    """Pairs and response tokens per second since the last log line, and peak memory since the start."""

    def __init__(self) -> None:
        self.step = 0
        self._since = time.perf_counter()

    def start(self, step: int) -> None:
        """Start counting at optimizer step `step`."""
        self.step = step
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, for a validation."""
        self._since -= time.perf_counter()  # while stopped, minus the seconds counted so far

    def resume(self) -> None:
        """Start the clock again."""
        self._since += time.perf_counter()

    def take(self, step: int, counted: dict[str, float]) -> dict[str, float]:
        """Return the rates since the last call and reset them, given the sums over all ranks since then."""
        seconds = time.perf_counter() - self._since
        self.start(step)
        rates = {
            "train/pairs_per_second": counted["train/pairs"] / seconds,
            "train/response_tokens_per_second": counted["train/response_tokens"] / seconds,
        }
        return rates | {"train/peak_memory_gib": peak_memory_gib()}


def peak_memory_gib() -> float:
    """The peak memory of the GPU if there is one, else of the process, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
