"""The bench of a GPU keeps to its budget, names what failed or did not fit, and its dry run measures every cell."""

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

sys.path.append(str(ROOT / "tools"))
import bench_gpu
from bench_gpu import Benchmark, Worker
from bench_gpu_device import Device
from bench_gpu_measure import RECOMPUTED, Bench, Cell, models, steps
from bench_gpu_plan import CELLS, MINUTES, RESERVE_S, START_S
from bench_gpu_report import DRY, page, write
from bench_gpu_worker import measure
from bench_work import quiet

# Budget and processes

STUB = """
import json, os, sys, time
open(f"{sys.argv[1]}/ready-{os.getpid()}", "w").close()
for line in sys.stdin:
    request = json.loads(line)
    if request["cell"] in ("hangs", "dies"):
        with open(request["file"].removesuffix(".json") + ".unfinished", "w") as file:
            json.dump({"result": {"numbers": {"half": 2.0}}}, file)
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
    for ended in ("dies", "hangs"):
        assert found[ended]["result"]["numbers"] == {"half": 2.0}, "what it had measured until then"
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


def test_the_plan_fits_into_its_time():
    assert sum(cell.expected_s for cell in CELLS.values()) + START_S <= 60 * MINUTES - RESERVE_S


def test_cells_are_compared_on_the_same_pairs():
    for cell in CELLS.values():
        if cell.against is not None:
            other = CELLS[cell.against]
            assert (cell.work, cell.pace) == (other.work, other.pace)


def test_memory_is_predicted_in_full_with_adapters_and_for_long_pairs():
    cells = [cell for cell in CELLS.values() if cell.predicted is not None]
    assert all(cell.predicted in cell.contenders and cell.pace.block == 1 for cell in cells)
    assert {(cell.work.lora, cell.predicted == RECOMPUTED) for cell in cells} == {
        (False, False),
        (True, True),
        (False, True),
    }
    (long,) = (cell for cell in cells if cell.work.case == "16k")
    assert min(len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in long.work.draw()) > 16_000


def test_both_sides_have_a_compiled_contender_in_one_cell(tmp_path: Path):
    cell, bench = CELLS["0.5B-c-compiled"], Bench(Device("cpu"), tmp_path)
    ours, rival = (cell.contender(name, bench) for name in cell.contenders)
    assert dict(ours.policy)["compile"] == rival.compiled == "eager"
    assert (
        rival._arguments(cell.work, tmp_path).items()
        >= {"torch_compile": True, "torch_compile_backend": "eager"}.items()
    )


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


def request(cell: str, folder: Path) -> dict[str, Any]:
    file = str(folder / f"{cell}.json")
    return {"cell": cell, "accelerator": "cpu", "models": str(folder), "matmul": 1e11, "file": file}


def dry(cell: str, folder: Path) -> dict[str, Any]:
    outcome = measure(request(cell, folder))
    assert "error" not in outcome, outcome["traceback"]
    return outcome["result"]


def test_a_dry_run_of_the_losses_finds_equal_ones(folder: Path):
    own, rival = dry("losses-fp32", folder)["contenders"].values()
    assert len(own["losses"]) == 3
    assert own["losses"] == pytest.approx(rival["losses"], abs=1e-5)
    assert own["losses"][0] != own["losses"][1]
    assert own["tokens_per_s"] > own["pairs_per_s"] > 0


def test_a_dry_run_with_adapters_predicts_the_memory_of_one_contender(folder: Path):
    found = dry("1.5B-c-lora", folder)
    assert found["predicted"] in found["contenders"] and found["predicted_gib"]["allocated"] > 0
    text = page({"about": {"dry": True}, "cells": {"lora": {"status": "done", "seconds": 1.0, "result": found}}})
    assert "lora, lit_pref, gradient checkpointing: `check` predicts (GiB)" in text and "predicted / measured" in text


def test_a_dry_run_of_the_head_finds_small_errors(folder: Path):
    found = dry("head", folder)
    heads = found["heads"]
    assert {"lit_pref", "TRL"} <= heads.keys()
    assert "times TRL's time, with errors of up to" in page(
        {"about": {"dry": True}, "cells": {"head": {"status": "done", "seconds": 1.0, "result": found}}}
    )
    assert all(head["logp_error"] < 0.05 and head["forward_s"] > 0 for head in heads.values())


def test_a_request_for_a_cell_that_fails_is_answered_with_its_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: Any) -> Any:
        raise SystemExit("not here")

    monkeypatch.setitem(CELLS, "broken", Cell("broken", fails, 1.0))
    outcome = measure(request("broken", folder))
    assert outcome["error"] == "SystemExit: not here"


def test_a_cell_that_fails_late_keeps_what_it_had_measured(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(cell: Cell, bench: Bench, folder: Path) -> Any:
        bench.keep({"numbers": {"half": 2.0}})
        raise MemoryError("full")

    monkeypatch.setitem(CELLS, "late", Cell("late", fails, 1.0))
    outcome = measure(request("late", folder))
    assert outcome["result"] == {"numbers": {"half": 2.0}} and outcome["error"] == "MemoryError: full"


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


def test_the_wheels_are_versions_that_the_project_takes():
    script = (ROOT / "tools" / "wheels_for_gpu.sh").read_text()
    pinned = dict(re.findall(r"(\S+)==(\S+)", script))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [project["dependencies"], *project["optional-dependencies"].values()]
    named = [one for lines in asked for line in lines if (one := Requirement(line)).name in pinned]
    assert {"trl", "transformers", "datasets", "jsonargparse"} <= {one.name for one in named}
    assert not [f"{one}: {pinned[one.name]}" for one in named if pinned[one.name] not in one.specifier]


def test_the_page_of_performance_says_how_many_steps_each_cell_takes():
    text = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    said = re.search(r"Each contender of a cell trains, .*?in brackets, (.*?)\. ", text)
    assert said is not None
    found = {
        cell: (int(taken), int(untimed))
        for taken, untimed, cells in re.findall(r"(\d+) \((\d+)\) steps in (.*?)(?=; |$)", said[1] + "`")
        for cell in re.findall(r"`([\w.-]+)`", cells)
    }
    assert found == {
        cell.name: (cell.pace.steps, cell.pace.dropped) for cell in CELLS.values() if cell.measure is steps
    }
