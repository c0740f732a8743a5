"""Contenders of the bench of a GPU take turns, have their own memory, and are taken apart by kinds of kernels."""

import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(ROOT / "tools"))
import bench_trl
from bench_gpu_device import Device
from bench_gpu_profile import KINDS, PROFILED, STEPS, inspect, kernels
from bench_gpu_steps import ALONE, RECOMPUTING, Pace, Turns, compare, flops
from bench_steps import Loop, Train
from bench_trl import Trl, grouped_pairs
from bench_work import MODELS, Pair, Work, quiet

CPU = Device("cpu")
WORK = Work("smoke", "smoke-qwen", 512, pairs=2, windows=6)


class CountedMemory:
    """A device whose memory is a number that trainings change."""

    def __init__(self) -> None:
        self.held = self.highest = 0.0

    def take(self, resting: float, for_a_moment: float) -> None:
        self.held += resting
        self.highest = max(self.highest, self.held + for_a_moment)

    def allocated(self) -> float:
        return self.held

    def reset_peak(self) -> None:
        self.highest = self.held

    def peak(self) -> float:
        return self.highest

    def synchronize(self) -> None: ...

    def free(self) -> None: ...


# Contenders in turns


def training(name: str, done: list[str], fails_at: int | None = None, error: Exception | None = None) -> Train:
    def train(loop: Loop) -> None:
        for step in range(6):
            if step == fails_at:
                raise error or ValueError("why")
            done.append(f"{name}{step}")
            loop.end_step(torch.nn.Linear(1, 1), torch.tensor(float(step)))

    return train


def test_contenders_take_turns_of_some_steps_and_only_the_timed_turns_count():
    done: list[str] = []
    turns = Turns({name: training(name, done) for name in "xy"}, CPU, Pace(warm_up=1, timed=2, block=2))
    taken = turns.run()
    turns.stop()
    assert done == [f"{name}{step}" for start in (0, 2, 4) for name in "xy" for step in (start, start + 1)]
    for own in taken.values():
        assert len(own.seconds) == 2
        assert own.losses == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_memory_is_a_contenders_own():
    device: Any = CountedMemory()

    def train(weights: float, activations: float) -> Train:
        def run(loop: Loop) -> None:
            device.take(weights, 100)  # loading is not a step
            for step in range(4):
                device.take(0, activations if step == 2 else 1)
                loop.end_step(torch.nn.Linear(1, 1), 0.0)

        return run

    turns = Turns({"small": train(4, 3), "large": train(10, 20)}, device, Pace(warm_up=2, timed=2, block=1))
    taken = turns.run()
    turns.stop()
    assert (taken["small"].peak_gib, taken["large"].peak_gib) == (7, 30)


def test_a_contender_that_fails_leaves_the_others_alone():
    done: list[str] = []
    trains = {"bad": training("b", done, fails_at=3), "good": training("g", done)}
    kept: list[dict[str, Any]] = []
    found = compare(trains, WORK, CPU, Pace(1, 2, 2), matmul=1e12, keep=kept.append)
    assert found["bad"]["error"] == "ValueError: why"
    assert found["good"]["pairs_per_s"] > 0 and found["good"]["form"] == ""
    assert [step for step in done if step[0] == "g"] == [f"g{step}" for step in range(6)]
    assert [len(numbers["good"]["step_s"]) for numbers in kept] == [1, 2], "numbers after every timed round"
    assert kept[0]["good"]["losses"] == [0.0, 1.0, 2.0, 3.0]
    assert kept[-1]["good"] == found["good"]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_contender_without_enough_memory_runs_again_alone_and_then_recomputes(failures: int):
    done: list[str] = []
    attempts = iter([torch.OutOfMemoryError("full")] * failures + [None])

    def large(loop: Loop) -> None:
        training("l", done, fails_at=None if (error := next(attempts)) is None else 1, error=error)(loop)

    trains = {"small": training("s", done), "large": large}
    device: Any = CountedMemory()
    found = compare(trains, WORK, device, Pace(1, 2, 2), None, smaller={"large": large, "small": large})
    assert found["large"]["form"] == (ALONE, RECOMPUTING, RECOMPUTING)[failures - 1]
    assert ("error" in found["large"]) == (failures == 3)
    assert failures == 3 or found["large"]["losses"][-1] == 5.0
    assert found["small"]["form"] == "" and found["small"]["share_of_matmul_peak"] is None


def test_the_flops_of_a_step_are_those_of_its_weights():
    shape = MODELS["smoke-qwen"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape, vocab_size=512))
    layers = sum(p.numel() for name, p in model.named_parameters() if "proj.weight" in name)
    head = model.lm_head.weight.numel()
    assert flops(WORK, prompts=10, responses=7) == 6 * (layers * 17 + head * 7)


def padding(pairs: list[Pair], size: int) -> float:
    rows = [[len(p["prompt"]) + len(p[side]) for side in ("chosen", "rejected")] for p in pairs]
    batches = [[n for row in rows[start : start + size] for n in row] for start in range(0, len(rows), size)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches))


def test_batches_grouped_by_length_have_the_padding_of_a_large_file():
    work = Work("c", "smoke", 512, pairs=16, windows=20)
    pairs = grouped_pairs(work, skipped=4)
    assert len(pairs) == 16 * 20
    assert padding(pairs[64:], 16) == pytest.approx(1.19, abs=0.03)
    assert padding(work.in_order()[64:], 16) > 2
    real = [sum(map(len, (p["prompt"], p["chosen"], p["rejected"]))) for p in pairs[64:]]
    assert statistics.mean(real) == pytest.approx(work.tokens()["shared"] / 320, rel=0.1)


def test_trl_reads_the_batches_that_are_grouped_by_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quiet()
    WORK.write(tmp_path)
    seen: list[int] = []
    compute = bench_trl._Tokenized.compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        seen.append(int(inputs["attention_mask"].sum()))
        return compute(self, model, inputs, *rest, **options)

    monkeypatch.setattr(bench_trl._Tokenized, "compute_loss", spy)
    Trl(grouped=True, skipped=2).train(WORK, tmp_path, Loop())
    pairs = grouped_pairs(WORK, skipped=2)
    rows = [2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in pairs]
    assert seen == [sum(rows[start : start + 2]) for start in range(0, 12, 2)]


# Kernels


def event(name: str, *kernel_names: str, parent: Any = None) -> SimpleNamespace:
    launched = [SimpleNamespace(name=kernel, duration=1e6) for kernel in kernel_names]
    return SimpleNamespace(name=name, kernels=launched, cpu_parent=parent)


def test_kernels_are_sorted_by_what_launched_them_and_by_name():
    fused, attention = event("_TilePassBackward"), event("aten::scaled_dot_product_attention")
    step = event("Optimizer.step#AdamW.step", "Optimizer.step#AdamW.step")  # a range on the device, no kernel
    events = [
        event("aten::mm", "nvjet_tst_128x256_64x4_TNT", parent=fused),
        event("aten::mm", "nvjet_tst_128x256_64x4_TNT"),
        event("aten::add", "vectorized_elementwise_kernel"),
        event("flash", "flash_fwd_kernel<cutlass>"),
        event("aten::mm", "sm90_xmma_gemm", parent=attention),
        event("aten::_fused_adamw_", "multi_tensor_apply_kernel", parent=step),
        event("aten::to", "Memcpy HtoD (Pageable -> Device)"),
        step,
    ]
    kinds, longest = kernels(events)
    expected = {"head": 1.0, "GEMM": 1.0, "attention": 2.0, "element-wise": 1.0, "optimiser": 1.0, "copies": 1.0}
    assert dict(kinds) == expected
    assert longest["nvjet_tst_128x256_64x4_TNT"] == 2.0


def test_what_waits_for_the_device_is_counted_in_steps_of_its_own(tmp_path: Path):
    class Contender:
        def train(self, work: Work, folder: Path, loop: Loop) -> None:
            for _ in range(work.windows):
                for _ in range(3):
                    warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
                warnings.warn("something else", stacklevel=1)
                loop.end_step(torch.nn.Linear(1, 1), torch.ones(8, 8) @ torch.ones(8, 8))

    with warnings.catch_warnings():
        quiet()
        found = inspect(Contender(), replace(WORK, windows=STEPS), tmp_path, CPU)
    ((place, waits),) = found["synchronizations"].items()
    assert place.startswith("tools/test_bench_gpu.py:") and waits == 3
    numbers = found["numbers"]
    assert numbers["GEMM_s"] > 0 and numbers["head_s"] == 0
    busy = sum(numbers[f"{kind}_s"] for kind in KINDS)
    assert numbers["idle_s"] == pytest.approx(max(0.0, numbers["step_s"] - busy)), "kinds and idle time are the step"


def test_idle_time_is_that_of_steps_without_the_profiler(tmp_path: Path):
    class Slowed:
        """Steps of a millisecond, which take fifty under the profiler."""

        def train(self, work: Work, folder: Path, loop: Loop) -> None:
            for step in range(STEPS):
                profiled = STEPS - 2 * PROFILED <= step < STEPS - PROFILED
                time.sleep(0.05 if profiled else 0.001)
                loop.end_step(torch.nn.Linear(1, 1), torch.ones(()))

    numbers = inspect(Slowed(), WORK, tmp_path, CPU)["numbers"]
    assert numbers["idle_s"] <= numbers["step_s"] < 0.03
    assert numbers["profiled_step_s"] > 0.05
