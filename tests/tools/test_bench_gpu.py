"""The bench of a GPU: contenders in turns, a budget, processes that fail, and what the table says of them."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(ROOT / "tools"))
import bench_gpu
import bench_trl
from bench_gpu import Benchmark, Worker
from bench_gpu_device import Device
from bench_gpu_measure import Cell, models
from bench_gpu_plan import CELLS
from bench_gpu_profile import kernels
from bench_gpu_report import DRY, page, write
from bench_gpu_steps import Pace, Turns, compare, flops
from bench_gpu_worker import measure
from bench_steps import Loop, Train
from bench_trl import Trl, grouped_pairs
from bench_work import MODELS, Pair, Work, quiet

CPU = Device("cpu")
WORK = Work("smoke", "smoke-qwen", 512, pairs=2, windows=6)


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


def test_a_contender_that_fails_leaves_the_others_alone():
    done: list[str] = []
    trains = {"bad": training("b", done, fails_at=3), "good": training("g", done)}
    found = compare(trains, WORK, CPU, Pace(1, 2, 2), matmul=1e12)
    assert found["bad"]["error"] == "ValueError: why"
    assert found["good"]["pairs_per_s"] > 0 and not found["good"]["alone"]
    assert [step for step in done if step[0] == "g"] == [f"g{step}" for step in range(6)]


def test_a_contender_without_enough_memory_runs_again_alone():
    done: list[str] = []
    attempts = iter([torch.OutOfMemoryError("full"), None])

    def large(loop: Loop) -> None:
        training("l", done, fails_at=None if (error := next(attempts)) is None else 1, error=error)(loop)

    found = compare({"small": training("s", done), "large": large}, WORK, CPU, Pace(1, 2, 2), None)
    assert found["large"]["alone"] and found["large"]["losses"][-1] == 5.0
    assert not found["small"]["alone"] and found["small"]["share_of_matmul_peak"] is None


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


# Budget and processes

STUB = """
import json, os, sys, time
open(f"{sys.argv[1]}/ready-{os.getpid()}", "w").close()
for line in sys.stdin:
    request = json.loads(line)
    if request["cell"] == "hangs":
        time.sleep(60)
    if request["cell"] == "dies":
        print("out of luck", file=sys.stderr)
        os._exit(3)
    numbers = {"matmul_flops": 5.0} if request["cell"] == "first" else {"got": request["matmul"]}
    outcome = {"error": "ValueError: no"} if request["cell"] == "fails" else {"result": {"numbers": numbers}}
    with open(request["file"] + ".part", "w") as file:
        json.dump(outcome, file)
    os.rename(request["file"] + ".part", request["file"])
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(Worker, "script", script)
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize("dry", [False, True])
def test_cells_that_fail_hang_or_do_not_fit_are_named_and_the_rest_is_measured(
    dry: bool, stub: Path, capsys: pytest.CaptureFixture[str]
):
    names = ["first", "fails", "dies", "hangs", "large", "last"]
    cells = [Cell(name, models, {"large": 1000.0}.get(name, 1.0)) for name in names]
    bench = Benchmark(cells, stub / "work", stub / "out", dry, time.monotonic() + 30)
    # A cell may take at most twice what is expected and ten seconds.
    limits = {"hangs": 0.5}
    measured = Worker.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Worker,
            "measure",
            lambda self, cell, device, peak, limit: measured(self, cell, device, peak, limits.get(cell, limit)),
        )
        found = bench.run()["cells"]
    states = {name: outcome["status"] for name, outcome in found.items()}
    assert states == {
        "first": "done",
        "fails": "failed",
        "dies": "failed",
        "hangs": "timed out",
        "large": "done" if dry else "skipped",
        "last": "done",
    }
    assert "ended with 3" in found["dies"]["error"] and "out of luck" in found["dies"]["error"]
    assert found["last"]["result"]["numbers"] == {"got": 5.0}, "an earlier cell measured it"
    saved = json.loads((stub / "out" / "gpu.json").read_text())
    assert saved["cells"].keys() == found.keys()
    text = (stub / "out" / "gpu.md").read_text()
    assert ("expected to take 1000 s" in text) != dry
    assert (DRY in text) == dry
    assert "hangs: timed out" in capsys.readouterr().out


def test_what_was_measured_before_the_script_is_killed_is_on_disk(stub: Path, monkeypatch: pytest.MonkeyPatch):
    cells = [Cell(name, models, 1.0) for name in ("first", "second")]
    bench = Benchmark(cells, stub / "work", stub / "out", True, time.monotonic() + 30)
    measured = Worker.measure

    def killed(self: Worker, cell: str, *rest: Any) -> dict[str, Any]:
        if cell == "second":
            raise KeyboardInterrupt
        return measured(self, cell, *rest)

    monkeypatch.setattr(Worker, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert not any(worker.alive for worker in bench.workers)
    saved = json.loads((stub / "out" / "gpu.json").read_text())
    assert saved["cells"]["first"]["status"] == "done"


# The table


def results(**losses: list[float]) -> dict[str, Any]:
    def taken(step: float, own: list[float]) -> dict[str, Any]:
        return {"median_step_s": step, "pairs_per_s": 16 / step, "peak_gib": 10 * step, "losses": own}

    contenders = {
        "lit_pref": taken(0.1, [0.7, 0.6]),
        "TRL": taken(0.2, losses["trl"]),
        "TRL, no metrics": {"error": "full"},
    }
    cells = {
        "0.5B-c": {"status": "done", "seconds": 20.0, "result": {"contenders": contenders}},
        "0.5B-c-liger": {
            "status": "done",
            "seconds": 9.0,
            "result": {"contenders": {"TRL, Liger layers": taken(0.15, [0.7, 0.6])}, "against": "0.5B-c"},
        },
        "late": {"status": "skipped", "seconds": 0.0, "error": "expected to take 30 s, and 4 s were left"},
    }
    return {"about": {"dry": False, "device": "a GPU"}, "cells": cells}


def test_the_table_compares_with_lit_pref_on_the_same_pairs(tmp_path: Path):
    text = write(results(trl=[0.7, 0.61]), tmp_path)
    rows = {line.split(" | ")[1]: line.split(" | ") for line in text.splitlines() if line.startswith("| 0.5B")}
    assert rows["TRL"][-3:] == ["2.00", "2.00", "1e-02 |"]
    assert rows["TRL, Liger layers"][-3:] == ["1.50", "1.50", "0e+00 |"], "against the cell that has lit_pref"
    assert "full" in rows["TRL, no metrics"][2]
    assert "| late | skipped | 0.0 | expected to take 30 s, and 4 s were left |" in text
    assert DRY not in text
    assert (tmp_path / "gpu.png").stat().st_size > 5_000


@pytest.mark.parametrize("other", [0.7, float("nan")])
def test_losses_that_differ_by_more_than_the_tolerance_are_bold(other: float):
    assert "**" in next(line for line in page(results(trl=[0.7, other])).splitlines() if "| TRL |" in line)


# A dry run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet()
    return tmp_path_factory.mktemp("gpu")


def dry(cell: str, folder: Path) -> dict[str, Any]:
    outcome = measure({"cell": cell, "accelerator": "cpu", "models": str(folder), "matmul": 1e11})
    assert "error" not in outcome, outcome["traceback"]
    return outcome["result"]


def test_a_dry_run_of_the_losses_finds_equal_ones(folder: Path):
    own, rival = dry("losses-fp32", folder)["contenders"].values()
    assert len(own["losses"]) == 3
    assert own["losses"] == pytest.approx(rival["losses"], abs=1e-5)
    assert own["losses"][0] != own["losses"][1]
    assert own["tokens_per_s"] > own["pairs_per_s"] > 0


def test_a_dry_run_of_the_head_finds_small_errors(folder: Path):
    heads = dry("head", folder)["heads"]
    assert {"lit_pref", "TRL"} <= heads.keys()
    assert all(head["logp_error"] < 0.05 and head["forward_s"] > 0 for head in heads.values())


def test_a_request_for_a_cell_that_fails_is_answered_with_its_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: Any) -> Any:
        raise SystemExit("not here")

    monkeypatch.setitem(CELLS, "broken", Cell("broken", fails, 1.0))
    outcome = measure({"cell": "broken", "accelerator": "cpu", "models": str(folder), "matmul": None})
    assert outcome["error"] == "SystemExit: not here"


@pytest.mark.slow
def test_the_whole_dry_run_measures_every_cell(tmp_path: Path):
    command = [sys.executable, bench_gpu.__file__, "--dry_run", "--minutes", "10", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["cells"]
    assert found.keys() == CELLS.keys()
    assert {outcome["status"] for outcome in found.values()} == {"done"}
    errors = [
        taken["error"]
        for cell in found.values()
        for taken in cell["result"].get("contenders", {}).values()
        if "error" in taken
    ]
    assert not errors
    assert DRY in (tmp_path / "gpu.md").read_text()
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_the_wheels_have_the_pinned_trl():
    pinned = (ROOT / "tools" / "wheels_for_gpu.sh").read_text()
    assert "trl==1.16.0" in pinned and '"trl==1.16.0"' in (ROOT / "pyproject.toml").read_text()
