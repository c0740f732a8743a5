"""CPU time of starting: `--help`, an import, and `fit` up to its first step."""

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

FIRST_STEP = """
import json, os, sys, time
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_start(self, *arguments):
        print(json.dumps([time.process_time(), list(sys.modules)]), flush=True)
        os._exit(0)
"""
IMPORTS = """
import contextlib, importlib, json, sys, time
for name in json.load(open(sys.argv[1])):
    with contextlib.suppress(Exception):
        importlib.import_module(name)
print(time.process_time())
"""


def start_up(cell: Any, folder: Path) -> dict[str, Any]:
    """CPU seconds of `--help`, of `import lit_pref`, and of `fit` up to its first step, with and without imports."""
    cell.work.write(folder)
    (folder / "first_step.py").write_text(FIRST_STEP)
    (folder / "imports.py").write_text(IMPORTS)
    fit = ["-m", "lit_pref", "fit", "--model.policy.path=policy", "--data.train=pairs.jsonl", "--data.val_fraction=0"]
    fit += ["--model.objective=DPO", "--data.global_batch=2", "--data.max_length=4096", "--trainer.accelerator=cpu"]
    fit += ["--trainer.callbacks+=first_step.Stop", "--trainer.enable_progress_bar=false"]
    import_one = "import time; start = time.process_time(); import lit_pref; print(time.process_time() - start)"
    taken: dict[str, list[float]] = {"help_s": [], "import_s": [], "fit_s": [], "fit_imports_s": []}
    for k in range(1 + cell.timed):
        before = _children_s()
        _python(folder, "-m", "lit_pref", "--help")
        seconds = {"help_s": _children_s() - before, "import_s": float(_python(folder, "-c", import_one))}
        line = _python(folder, *fit, f"--run_dir=run-{k}").splitlines()[-1]
        fit_s, modules = json.loads(line)
        (folder / "modules.json").write_text(json.dumps(modules))
        seconds |= {"fit_s": fit_s, "fit_imports_s": float(_python(folder, "imports.py", "modules.json").split()[-1])}
        for name, value in seconds.items():
            if k:  # the first round fills the caches of the system and of lit_pref
                taken[name].append(value)
    return {"numbers": {name: statistics.median(values) for name, values in taken.items()}}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _python(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout
