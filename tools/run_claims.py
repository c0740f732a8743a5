"""Remakes docs/claims.md from nothing: trains the studies that it names, one after the other, and writes the page.

`python tools/run_claims.py` resumes what was interrupted; `--workers N` trains N trials at a time (default 2), and
`--only NAME` one study, such as 006_sft_or_dpo.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from write_claims import PAGE, page, studies

from lit_pref.testbed.make import ENVIRONMENT

ROOT = Path(__file__).parents[1]


def main(workers: int, only: str | None) -> None:
    """Train the studies and write the page.

    Raises:
        SystemExit: a worker failed.
    """
    names = [name for name in studies() if only in (None, name)]
    if not names:
        sys.exit(f"no claim names the study {only}; known: {', '.join(studies())}")
    for name in names:
        started, spent = time.monotonic(), _seconds()
        command = [sys.executable, "-m", "lit_pref", "ablate", "--config", f"experiments/{name}/study.yaml"]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        running = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(workers)]
        failed = [code for worker in running if (code := worker.wait())]
        if failed:
            sys.exit(f"{name}: a worker ended with exit code {failed[0]}; correct it and run the same command again")
        minutes = (time.monotonic() - started) / 60, (_seconds() - spent) / 60
        print(f"{name}: {minutes[0]:.1f} minutes, {minutes[1]:.1f} CPU minutes", flush=True)
    if only is None:
        PAGE.write_text(page(), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")


def _seconds() -> float:
    """Return the CPU seconds that the workers and their own processes have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Remake docs/claims.md from nothing.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only")
    given = parser.parse_args()
    main(given.workers, given.only)
