"""The benchmark's cells, each a comparison on some work. `python tools/bench_cells.py NAME FILE` runs one."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_generate import generating
from bench_goals import (
    COMPACT,
    COMPACT_LIVE,
    INSTALLED,
    INSTALLED_STORED,
    LIVE,
    LIVE_2,
    LIVE_3,
    LIVE_EPOCHS,
    NO_CHECKPOINTING,
    NO_METRICS,
    OURS,
    PADDED,
    SHARED,
    STORED_EPOCHS,
    UNFUSED,
)
from bench_loop import loop_overhead
from bench_ours import Ours
from bench_profile import profile
from bench_reward import scoring
from bench_start import start_up
from bench_steps import Loop, alternate, whole
from bench_trl import Trl
from bench_work import Work, quiet

DROPPED, TIMED, WEIGHED = 1, 3, 2
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
"""Freed memory stays in the process: what a careful user of either side sets."""

CONTENDERS: dict[str, Ours | Trl] = {
    OURS: Ours(),
    LIVE: Ours(stored=False),
    PADDED: Ours(layout="padded"),
    SHARED: Ours(layout="prefix_shared"),
    UNFUSED: Ours(fused=False),
    LIVE_2: Ours(stored=False, references=2),
    LIVE_3: Ours(stored=False, references=3),
    COMPACT: Trl(),
    NO_METRICS: Trl(metrics=False),
    COMPACT_LIVE: Trl(stored=False),
    INSTALLED: Trl(compact=False, stored=False, checkpointing=True),
    NO_CHECKPOINTING: Trl(compact=False, stored=False),
    INSTALLED_STORED: Trl(compact=False),
    STORED_EPOCHS: Ours(references=3, epochs=3),
    LIVE_EPOCHS: Ours(stored=False, references=3, epochs=3),
}


@dataclass(frozen=True)
class Cell:
    """One subprocess of the bench. `measure` takes the cell and a folder and gives what goes into the JSON."""

    name: str
    measure: "Callable[[Cell, Path], dict[str, Any]]"
    work: Work = field(default=Work("smoke", "smoke", 512, 2))
    contenders: tuple[str, ...] = ()
    tuned: bool = False
    full: bool = False
    timed: int = TIMED
    weighed: int = WEIGHED

    @property
    def environment(self) -> dict[str, str]:
        # One arena: threads then allocate as a main thread does.
        fixed = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        fixed |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return fixed | (TUNED if self.tuned else {})

    def small(self) -> "Cell":
        """Return a version of the same comparison that takes seconds, to see that it runs."""
        return replace(self, work=replace(self.work, case="smoke", model="smoke", vocabulary=512, pairs=2), timed=1)

    @property
    def references(self) -> int:
        """Models that are needed beside the policy, the policy's copy among them."""
        return max(getattr(CONTENDERS[name], "references", 1) for name in self.contenders)

    def trains(self, folder: Path) -> dict[str, Callable[[Loop], None]]:
        return {name: partial(CONTENDERS[name].train, self.work, folder) for name in self.contenders}


# How a cell is measured


def steps(cell: Cell, folder: Path) -> dict[str, Any]:
    """Measure a cell whose contenders alternate step by step."""
    cell = replace(cell, work=replace(cell.work, windows=DROPPED + cell.timed + cell.weighed))
    cell.work.write(folder, references=cell.references)
    measured = alternate(cell.trains(folder), DROPPED, cell.timed, cell.weighed)
    return _results(cell, measured)


def epochs(cell: Cell, folder: Path) -> dict[str, Any]:
    """Three epochs from beginning to end, what fills the reference store included."""
    cell = replace(cell, work=replace(cell.work, windows=cell.timed))
    cell.work.write(folder, references=cell.references)
    return _results(cell, whole(cell.trains(folder), steps=3 * cell.timed))


def processes(cell: Cell, folder: Path) -> dict[str, Any]:
    """Each contender in a process of its own: the most memory that the process ever had."""
    cell = replace(cell, work=replace(cell.work, windows=cell.timed))
    cell.work.write(folder)
    peaks = {}
    for name in cell.contenders:
        contender = CONTENDERS[name]
        told = {"side": type(contender).__name__, "contender": asdict(contender), "work": asdict(cell.work)}
        command = [sys.executable, Path(__file__).with_name("bench_process.py"), json.dumps(told), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = {"process_mib": float(done.stdout.split()[-1])}
    return {"work": asdict(cell.work), "tokens": cell.work.tokens(), "contenders": peaks}


def _results(cell: Cell, measured: dict[str, Any]) -> dict[str, Any]:
    contenders = {name: asdict(numbers) for name, numbers in measured.items()}
    return {"work": asdict(cell.work), "tokens": cell.work.tokens(), "contenders": contenders}


# The cells

WORKS = {
    "a-s-32k": Work("a", "s", 32_000, 4),
    "b-s-32k": Work("b", "s", 32_000, 4),
    "c-s-32k": Work("c", "s", 32_000, 8),
    "a-s-128k": Work("a", "s", 128_256, 2),
    "b-s-128k": Work("b", "s", 128_256, 2),
    "c-s-128k": Work("c", "s", 128_256, 4),
    "a-m-32k": Work("a", "m", 32_000, 2),
    "a-s-128k-lora": Work("a", "s", 128_256, 2, lora=True),
}


def _cells() -> list[Cell]:
    cells = [Cell(name, steps, work, (OURS, COMPACT)) for name, work in WORKS.items()]
    cells += [
        Cell(f"{name}-tuned", steps, work, (OURS, NO_METRICS), tuned=True, timed=2, weighed=0)
        for name, work in WORKS.items()
    ]
    for case in "abc":
        cells.append(Cell(f"{case}-installed", steps, WORKS[f"{case}-s-32k"], (OURS, INSTALLED), timed=2, weighed=0))
    work = WORKS["a-s-32k"]
    cells.append(Cell("references", steps, work, (OURS, LIVE, LIVE_2, LIVE_3)))
    cells.append(Cell("epochs", epochs, work, (STORED_EPOCHS, LIVE_EPOCHS), timed=3))
    cells.append(Cell("processes", processes, work, (OURS, COMPACT, INSTALLED, INSTALLED_STORED), timed=2))
    cells.append(Cell("short", steps, Work("short", "testbed", 104, 32), (OURS, PADDED), timed=60))
    cells.append(Cell("optimizer", steps, work, (OURS, UNFUSED), full=True))
    for case in ("2k", "4k", "8k"):
        cells.append(Cell(f"row-{case}", steps, Work(case, "s", 512, 1), (SHARED, PADDED), full=True))
    held_out = Work("hh", "narrow", 49_152, 16)
    cells.append(Cell("held-out", steps, held_out, (OURS, COMPACT, NO_METRICS), full=True))
    cells.append(Cell("profile-held-out", profile, held_out, full=True))
    cells += [Cell("loop", loop_overhead), Cell("start", start_up, timed=5)]
    cells.append(Cell("generate", partial(generating, temperature=1.0), timed=5))
    cells.append(Cell("generate-greedy", partial(generating, temperature=0.0), timed=5))
    cells.append(Cell("reward-score", scoring, Work("judged", "s", 32_000, 32)))
    cells.append(Cell("profile", profile, WORKS["a-s-32k"]))
    cells.append(Cell("profile-128k", profile, WORKS["a-s-128k"]))
    cells.append(Cell("profile-c", profile, WORKS["c-s-32k"]))
    for name, work in WORKS.items():
        rest = (OURS, NO_METRICS, LIVE, COMPACT_LIVE)
        cells.append(Cell(f"{name}-rest", steps, work, rest, full=True))
        cells.append(Cell(f"{name}-tuned-metrics", steps, work, (OURS, COMPACT), tuned=True, full=True, weighed=0))
        cells.append(Cell(f"{name}-layouts", steps, work, (SHARED, PADDED), full=True))
    for case in "abc":
        rivals = (OURS, NO_CHECKPOINTING, INSTALLED_STORED)
        cells.append(Cell(f"{case}-installed-rest", steps, WORKS[f"{case}-s-32k"], rivals, timed=3, full=True))
    return cells


CELLS = {cell.name: cell for cell in _cells()}


def run(cell: Cell) -> dict[str, Any]:
    """Measure a cell in this process, on the last core that it may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    quiet()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LIT_PREF_CACHE"] = str(folder / "cache")
        return {"load": round(load, 2), "tuned": cell.tuned, **cell.measure(cell, folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CELLS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    cell = CELLS[options.name]
    missing = cell.environment.items() - os.environ.items()
    if missing:  # the allocator and OpenMP read it when the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **cell.environment})
    options.file.write_text(json.dumps(run(cell.small() if options.smoke else cell)))


if __name__ == "__main__":
    main()
