"""How fast training goes and how much memory it takes, between two log lines."""

import resource
import time

import torch


class Throughput:
    """Pairs and response tokens per second since the last log line, and peak memory since the start."""

    def __init__(self) -> None:
        self.step = 0
        self._since = time.perf_counter()

    def start(self, step: int) -> None:
        """Begin to count at optimiser step `step`."""
        self.step = step
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Training stands still, for a validation."""
        self._since -= time.perf_counter()  # until `go_on`, minus the seconds that count

    def go_on(self) -> None:
        """Training goes on."""
        self._since += time.perf_counter()

    def take(self, step: int, counted: dict[str, float]) -> dict[str, float]:
        """The rates since the last call, given what was `counted` meanwhile over all ranks; begins anew."""
        seconds = time.perf_counter() - self._since
        self.start(step)
        rates = {
            "train/pairs_per_second": counted["train/pairs"] / seconds,
            "train/response_tokens_per_second": counted["train/response_tokens"] / seconds,
        }
        return rates | {"train/peak_memory_gib": peak_memory_gib()}


def peak_memory_gib() -> float:
    """The most memory this process held: of the GPU where there is one, else of the process, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
