"""Runs the benchmark: lit_pref against TRL and against itself, each comparison in a separate process.

    python tools/bench_run.py                  the goals, under 40 minutes on a quiet machine with two cores
    python tools/bench_run.py --full           everything
    python tools/bench_run.py --only a-s-32k   some cells, into the same file
    python tools/bench_run.py --smoke          everything at toy sizes: shows that it runs, measures nothing

Results go into the JSON cell by cell; the page and the plot are written from it.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_cells import CELLS, Cell
from bench_goals import measured
from write_performance import RESULTS, table, write

PACKAGES = ("torch", "transformers", "trl", "lightning", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all cells, not only those of the goals")
    parser.add_argument("--only", nargs="+", metavar="CELL", choices=CELLS, help=", ".join(CELLS))
    parser.add_argument("--resume", action="store_true", help="leave out cells that the file has")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, into runs/bench")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS}")
    options = parser.parse_args()
    out = options.out or (Path("runs/bench/performance.json") if options.smoke else RESULTS)
    results = json.loads(out.read_text()) if out.exists() else {"cells": {}}
    for cell in chosen(options, results["cells"]):
        start = time.monotonic()
        outcome = run(cell, options.smoke)
        results["machine"] = machine()
        results["cells"][cell.name] = outcome | {"date": time.strftime("%Y-%m-%d"), "smoke": options.smoke}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{cell.name}: {time.monotonic() - start:.0f} s, load {outcome['load']}", flush=True)
        for goal, value in measured({cell.name: outcome}):
            print(f"    {goal.name}: {value:.3g} {goal.unit} ({goal.verdict(value)})", flush=True)
    write(out)
    print("\n" + "\n".join(table(results["cells"])))


def chosen(options: argparse.Namespace, done: dict[str, Any]) -> list[Cell]:
    if options.only:
        return [CELLS[name] for name in options.only]
    cells = [cell for cell in CELLS.values() if options.full or options.smoke or not cell.full]
    return [cell for cell in cells if not (options.resume and cell.name in done)]


def run(cell: Cell, smoke: bool) -> dict[str, Any]:
    """A cell's results, from a fresh process that has the environment which the allocator reads at its start."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, Path(__file__).with_name("bench_cells.py"), cell.name, file]
        command += ["--smoke"] if smoke else []
        done = subprocess.run(command, env={**os.environ, **cell.environment}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{cell.name} failed:\n{done.stderr[-3000:]}")
        return json.loads(file.read_text())


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {name: version(name) for name in PACKAGES}
    cpu = model.group(1) if model else platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
