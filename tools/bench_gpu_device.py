"""The device that is measured: its memory, its speed at multiplying; in a dry run, the CPU."""

import gc
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from bench_steps import status
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

PACKAGES = ("torch", "triton", "transformers", "trl", "lightning", "peft", "accelerate", "liger-kernel", "flash-attn")
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU that stands in for it in a dry run; `accelerator` is Lightning's name for it."""

    accelerator: Literal["gpu", "cpu"]

    @property
    def is_gpu(self) -> bool:
        return self.accelerator == "gpu"

    @property
    def torch(self) -> torch.device:
        return torch.device("cuda" if self.is_gpu else "cpu")

    def synchronize(self) -> None:
        """Wait until the device has done everything that it was told to do."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def allocated(self) -> float:
        """GiB of tensors; on the CPU, of the process."""
        return torch.cuda.memory_allocated() / GIB if self.is_gpu else status("VmRSS") / 1024

    def reset_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS

    def peak(self) -> float:
        """The most GiB since `reset_peak`."""
        return torch.cuda.max_memory_allocated() / GIB if self.is_gpu else status("VmHWM") / 1024

    def free(self) -> None:
        """Give memory that nothing refers to back."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def attention(self) -> str:
        """The fastest attention of transformers that is installed."""
        if self.is_gpu and is_flash_attn_3_available():
            return "flash_attention_3"
        return "flash_attention_2" if self.is_gpu and is_flash_attn_2_available() else "sdpa"

    def about(self) -> dict[str, Any]:
        """Return the name and memory of the device, and the versions of the software."""
        found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
        for name in PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(0)
            found |= {"device": properties.name, "memory_gib": properties.total_memory / GIB}
            found |= {"capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda}
        else:
            found["device"] = "CPU"
        return found | {"attention of TRL": self.attention()}


def matmul_peak(device: Device) -> float:
    """FLOP/s of a large multiplication in bf16 of random numbers, the best of three rounds."""
    size, times = (8192, 20) if device.is_gpu else (256, 2)
    a, b = (torch.randn(size, size, device=device.torch, dtype=torch.bfloat16) for _ in range(2))
    rounds = []
    for _ in range(4):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            a @ b
        device.synchronize()
        rounds.append((time.perf_counter() - start) / times)
    return float(2 * size**3 / min(rounds[1:]))


def copy_peak(device: Device) -> float:
    """Bytes per second that a large copy within the device reads and writes, the best of three rounds."""
    size = 2**31 if device.is_gpu else 2**20
    a = torch.zeros(size, dtype=torch.uint8, device=device.torch)
    b = torch.empty_like(a)
    rounds = []
    for _ in range(4):
        device.synchronize()
        start = time.perf_counter()
        b.copy_(a)
        device.synchronize()
        rounds.append(time.perf_counter() - start)
    return 2 * size / min(rounds[1:])
