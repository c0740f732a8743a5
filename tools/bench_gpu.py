"""Benchmark on one GPU: lit_pref against TRL on random models of real sizes, in bf16, in a given time.

    python tools/bench_gpu.py --list                       the cells, in the order in which they are measured
    python tools/bench_gpu.py --minutes 8 --out runs/gpu   all that fits into 8 minutes
    python tools/bench_gpu.py --only 0.5B-c 1.5B-c         some of them
    python tools/bench_gpu.py --dry_run                    all of them with tiny models on a CPU, in a minute
    python tools/bench_gpu.py --report runs/gpu            table and plot again, from the results

Every cell runs in a process of its own: one that fails is reported, and the others are measured. A cell that would not
end in time is skipped. After every cell the results are written: `gpu.json`, and with them as a table `gpu.md`; at the
end the plot `gpu.png`. Random weights of published shapes: time and memory do not depend on what a model knows.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from bench_gpu_measure import Cell
from bench_gpu_plan import CELLS, MINUTES, RESERVE_S
from bench_gpu_report import write

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # With several devices transformers' Trainer would train on all of them, with as many times the pairs in a step.
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
}


class Worker:
    """A process that measures cells; see `bench_gpu_worker`."""

    script = Path(__file__).with_name("bench_gpu_worker.py")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = (folder / "workers.log").open("ab")
        caches = {"LIT_PREF_CACHE": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "datasets")}
        self.process = subprocess.Popen(
            [sys.executable, self.script, folder],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, **ENVIRONMENT, **caches},
            start_new_session=True,
        )

    def wait(self, limit_s: float) -> None:
        """Wait until the process has loaded everything, has died, or has had `limit_s` for it."""
        end = time.monotonic() + limit_s
        while self.alive and not (self.folder / f"ready-{self.process.pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)

    def measure(self, cell: str, accelerator: str, matmul: float | None, limit_s: float) -> dict[str, Any]:
        """Return the outcome of a cell.

        A worker that does not answer in time, or dies, is an outcome too, with what it had measured until then.
        """
        file, start = self.folder / f"{cell}.json", time.monotonic()
        unfinished = file.with_suffix(".unfinished")
        for earlier in (file, unfinished):
            earlier.unlink(missing_ok=True)
        request = {"cell": cell, "accelerator": accelerator, "matmul": matmul, "models": str(self.folder)}
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, as the loop below finds
            self.process.stdin.write((json.dumps(request | {"file": str(file)}) + "\n").encode())
            self.process.stdin.flush()
        while not file.exists():
            if self.process.poll() is not None:
                error = f"the process ended with {self.process.returncode}: {self._tail()}"
                return {"status": "failed", "error": error, **_kept(unfinished)}
            if time.monotonic() - start > limit_s:
                self.end(now=True)
                return {"status": "timed out", "error": f"not done after {limit_s:.0f} s", **_kept(unfinished)}
            time.sleep(0.05)
        outcome = json.loads(file.read_text())
        return {"status": "failed" if "error" in outcome else "done", **outcome}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self, now: bool = False) -> None:
        """End the process and those that it started, at once or when it has nothing left to do."""
        if self.log.closed:
            return
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        if not now:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def _tail(self) -> str:
        return (self.folder / "workers.log").read_text(errors="replace")[-1500:]


def _kept(file: Path) -> dict[str, Any]:
    """Return what a worker had measured of a cell before it ended."""
    return json.loads(file.read_text()) if file.exists() else {}


class Benchmark:
    """Cells within a budget. On a GPU each has a fresh process, which gets ready while the one before is measured."""

    def __init__(self, cells: list[Cell], folder: Path, out: Path, dry: bool, deadline: float) -> None:
        self.cells, self.folder, self.out, self.dry, self.deadline = cells, folder, out, dry, deadline
        self.workers = [Worker(folder)]  # the last one measures next
        about = {"dry": dry, "date": time.strftime("%Y-%m-%d %H:%M"), "python": sys.version.split()[0]}
        self.results: dict[str, Any] = {"about": about, "cells": {}}
        self.matmul: float | None = None

    def run(self) -> dict[str, Any]:
        """Measure the cells one after another."""
        try:
            for cell in self.cells:
                self._keep(cell, self._outcome(cell))
        finally:
            for worker in self.workers:
                worker.end(now=True)
        write(self.results, self.out)
        return self.results

    def _outcome(self, cell: Cell) -> dict[str, Any]:
        if not self.workers[-1].alive:
            self.workers.append(Worker(self.folder))
        worker = self.workers[-1]
        worker.wait(self.deadline - time.monotonic())
        start = time.monotonic()
        left = self.deadline - start
        if left < (5 if self.dry else cell.expected_s):  # in a dry run the estimates mean nothing
            reason = f"expected to take {cell.expected_s:.0f} s, and {max(0, left):.0f} s were left"
            return {"status": "skipped", "error": reason, "seconds": 0.0}
        if not self.dry:
            self.workers.append(Worker(self.folder))
        limit_s = min(left, 60 if self.dry else 2 * cell.expected_s + 10)
        outcome = worker.measure(cell.name, "cpu" if self.dry else "gpu", self.matmul, limit_s)
        if not self.dry:
            worker.end()
        return outcome | {"seconds": round(time.monotonic() - start, 2)}

    def _keep(self, cell: Cell, outcome: dict[str, Any]) -> None:
        result = outcome.get("result", {})
        self.results["about"] |= result.pop("about", {})
        self.matmul = result.get("numbers", {}).get("matmul_flops", self.matmul)
        self.results["cells"][cell.name] = outcome
        write(self.results, self.out, plot=False)
        words = f"{outcome['status']}, {outcome['seconds']:.0f} s"
        print(f"{cell.name}: {words} {outcome.get('error', '')[:300]}", flush=True)


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="CELL", choices=CELLS, default=list(CELLS))
    parser.add_argument("--list", action="store_true", help="the names of the cells, with the seconds they may take")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the most time for everything")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu"), help="the folder for table, JSON and plot")
    parser.add_argument("--dry_run", action="store_true", help="tiny models on the CPU, to see that everything runs")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write table and plot of results that are there")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{cell.name:20} {cell.expected_s:.0f} s" for cell in CELLS.values()))
        print(f"{'in all':20} {sum(cell.expected_s for cell in CELLS.values()):.0f} s")
        return
    if options.report is not None:
        print(write(json.loads((options.report / "gpu.json").read_text()), options.report))
        return
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit(
            "bench_gpu measures on a CUDA device and torch finds none here; --dry_run tries it on a CPU, and "
            "`make bench` measures on one."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; what was measured is written"))
    cells = [cell for name, cell in CELLS.items() if name in options.only]
    deadline = start + 60 * options.minutes - RESERVE_S
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results = Benchmark(cells, Path(folder), options.out, options.dry_run, deadline).run()
    print((options.out / "gpu.md").read_text())
    if any(outcome["status"] in ("failed", "timed out") for outcome in results["cells"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
