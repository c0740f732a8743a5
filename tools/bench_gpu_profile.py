"""One step taken apart: the device's time by kinds of kernels, its idle time, and what waits for the device."""

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from bench_gpu_device import Device
from bench_profile import HEAD, MARKS, share_of
from bench_steps import Loop
from bench_work import Work
from step_waits import WARNING
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

SKIPPED, BLOCKS, PROFILED = 3, 3, 4  # steps, blocks that are timed, steps of a block
STEPS = SKIPPED + (BLOCKS + 2) * PROFILED
KINDS = ("GEMM", "attention", "head", "optimiser", "copies", "element-wise")
KERNELS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "optimiser": ("adam", "multi_tensor"),
    "copies": ("memcpy", "memset", "copy_kernel"),
    "GEMM": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "gemv"),
}
"""Parts of the names of kernels, in lower case; the first kind that has one is the kernel's."""
HEADS = (*HEAD, "ChunkedLogProb")
"""The autograd functions of both sides that make log-probs from hidden states; their kernels count as the head's."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class InspectedLoop(Loop):
    """After the first `skipped` steps, times 3 blocks of `steps` each, profiles a block, and counts waits in the last.

    The profiler makes launching kernels slower, so a step's time, and the device's idle time in it, are of the steps
    before the profiler starts. Nothing waits for the device between the steps of a block.
    """

    def __init__(self, device: Device, skipped: int, steps: int) -> None:
        super().__init__()
        self.device, self.skipped, self.steps, self.ended = device, skipped, steps, 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_gpu else [])]
        self.profiler = profile(activities=activities)
        self.started, self.plain_s, self.profiled_s = 0.0, list[float](), 0.0
        self.recorded = warnings.catch_warnings(record=True)
        self.waits: list[warnings.WarningMessage] = []

    def end_step(self, model: torch.nn.Module, loss: float | Tensor) -> None:
        self.ended += 1  # the loss is not read, which would wait for the device
        profiles = self.skipped + BLOCKS * self.steps
        if self.ended in range(self.skipped, profiles + 1, self.steps):
            self.device.synchronize()
            if self.ended > self.skipped:
                self.plain_s.append((time.perf_counter() - self.started) / self.steps)
            if self.ended == profiles:
                self.profiler.start()
            self.started = time.perf_counter()
        elif self.ended == profiles + self.steps:
            self.device.synchronize()
            self.profiled_s = time.perf_counter() - self.started
            self.profiler.stop()
            self._count(True)
        elif self.ended == profiles + 2 * self.steps:
            self._count(False)

    def _count(self, on: bool) -> None:
        if on:
            self.waits = self.recorded.__enter__()  # type: ignore[assignment]  # a list, as it records
            warnings.simplefilter("always")
        if self.device.is_gpu:
            torch.cuda.set_sync_debug_mode("warn" if on else "default")
        if not on:
            self.recorded.__exit__(None, None, None)


def inspect(
    contender: Any, work: Work, folder: Path, device: Device, skipped: int = SKIPPED, steps: int = PROFILED
) -> dict[str, Any]:
    """Return the shares of a step's time and the places that wait for the device, each per step.

    `idle_s` is the median step without the profiler minus the time in which the device is busy.
    """
    torch.backends.cuda.enable_cudnn_sdp(True)  # a contender that does not want cuDNN's attention turns it off
    loop = InspectedLoop(device, skipped, steps)
    contender.train(work, folder, loop)
    events = list(loop.profiler.events())
    kinds, longest = (kernels if device.is_gpu else operators)(events)
    step = statistics.median(loop.plain_s)
    busy = (_busy(events) if device.is_gpu else sum(kinds.values())) / steps
    numbers = {"step_s": step, **{f"{kind}_s": kinds[kind] / steps for kind in KINDS}, "idle_s": max(0.0, step - busy)}
    numbers["profiled_step_s"] = loop.profiled_s / steps
    names = Counter(event.name for event in events if event.name in WAITS)
    places = Counter(_place(warning) for warning in loop.waits if WARNING in str(warning.message))
    return {
        "numbers": numbers,
        "waits": {name: count / steps for name, count in names.items()},
        "synchronizations": {place: count / steps for place, count in places.most_common()},
        "longest": {name[:90]: seconds / steps for name, seconds in longest.most_common(15)},
    }


def kernels(events: Iterable[Any]) -> tuple[Counter[str], Counter[str]]:
    """Return seconds of the device by kind, and by kernel."""
    kinds, longest = Counter[str](), Counter[str]()
    for event in events:
        for kernel in event.kernels:
            if kernel.name == event.name:  # the range of a name on the device, not a kernel
                continue
            kinds[kind_of(kernel.name, event)] += kernel.duration / 1e6
            longest[kernel.name] += kernel.duration / 1e6
    return kinds, longest


def kind_of(kernel: str, event: Any) -> str:
    """Return the kind of a kernel that the operator `event` launched."""
    names, ancestor = list[str](), event
    while ancestor is not None:
        names.append(ancestor.name)
        ancestor = ancestor.cpu_parent
    if any(mark in name for mark in HEADS for name in names):
        return "head"
    if any(mark in name for mark in MARKS["attention"] for name in names):
        return "attention"
    return next((kind for kind, parts in KERNELS.items() if any(p in kernel.lower() for p in parts)), "element-wise")


def operators(events: Iterable[Any]) -> tuple[Counter[str], Counter[str]]:
    """Return seconds of the CPU by kind, and by operator."""
    kinds, longest = Counter[str](), Counter[str]()
    for event in events:
        if kind := share_of(event, HEADS):
            kinds[kind] += event.self_cpu_time_total / 1e6
            longest[event.name] += event.self_cpu_time_total / 1e6
    return kinds, longest


def _busy(events: Iterable[Any]) -> float:
    """Seconds in which at least one kernel runs."""
    spans = sorted(
        (kernel.time_range.start, kernel.time_range.end)
        for kernel in events
        if kernel.device_type == torch.autograd.DeviceType.CUDA and not getattr(kernel, "is_user_annotation", False)
    )
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def _place(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    return f"{'/'.join(path.parts[-2:])}:{warning.lineno}"
