"""Kills a run repeatedly, resumes it each time, and compares the result with a run that was never killed.

    python tools/kill_test.py --kills 20                                       DDP, two processes
    python tools/kill_test.py --kills 5 --strategy fsdp-distributed            FSDP2, checkpoints in shards

A run is killed (SIGKILL, all its processes) at moments drawn from a seed: some training batches and a fraction of a
second after it began to train, or within a validation, a save, the filling of the reference store or the export. It is
resumed with `--ckpt_path last`. When it is done it is compared bit for bit with a run that was not killed: the last
checkpoint (weights, optimizer, objective, schedule, position, loops, callbacks), the records and the logged values of
all steps, and the exported model; every pair must occur once an epoch in the steps that count. If kills are left, a new
run begins.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kill_compare import differences, outcome, uneven
from lightning.pytorch import Callback

MOMENTS = {"validation": 0.02, "saving": 0.05, "filling": 0.05, "export": 0.15}
"""Moments of a run, and how many seconds after their beginning a kill comes at the latest."""
OBJECTIVES = {
    "EpsilonDPO": ["--model.objective.epsilon=0.05", "--model.objective.beta=0.1"],  # a state, and a live reference
    "MMPO": ["--model.objective.beta=0.1"],  # a reference from the store
}

STRATEGIES = {
    "auto": ["auto"],
    "ddp": ["ddp"],
    "fsdp": ["ModelParallelStrategy", "false"],
    "fsdp-distributed": ["ModelParallelStrategy", "true"],
    "fsdp2": ["FSDP2", "true"],
}
PAIRS = 22  # steps of 8, 8 and 6 pairs


class History(Callback):
    """Appends (optimizer steps before, epoch, ids of real pairs) of every micro-batch to a file of its rank.

    Args:
        folder: of the files.
        kill: "MOMENT NUMBER SECONDS": kill this run so many seconds after that moment has come so many times.
    """

    def __init__(self, folder: str, kill: str | None = None) -> None:
        self.folder = Path(folder)
        self.moment, number, seconds = (kill or "none 0 0").split()
        self.left, self.seconds = int(number), float(seconds)
        from lit_pref.references.filling import StoreFiller
        from lit_pref.run import run

        StoreFiller._compute = self._marked("filling", StoreFiller._compute)
        run.export = self._marked("export", run.export)

    def _marked(self, moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            self._begins(moment)
            return function(*args, **kwargs)

        return marked

    def _begins(self, moment: str) -> None:
        if moment != self.moment or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self.left -= 1
        if self.left == 0:
            (self.folder / "killed").write_text(moment)
            threading.Timer(self.seconds, os.killpg, (os.getpgid(0), signal.SIGKILL)).start()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.save_checkpoint = self._marked("saving", trainer.save_checkpoint)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._begins("validation")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        ids = [name for name, real in zip(batch.pairs.ids, batch.pairs.is_real.tolist(), strict=True) if real]
        line = json.dumps([trainer.global_step, trainer.current_epoch, batch_idx, ids])
        with (self.folder / f"history-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")


def write_pairs(path: Path, number: int, first: int = 0) -> None:
    """Distinct pairs of several lengths, with the numbers from `first` in their prompts."""
    rng, words = random.Random(0), ["red", "green", "blue", "tin", "iron", "oak", "elm", "cat", "dog", "owl"]
    with path.open("w") as file:
        for k in range(number):
            prompt, chosen, rejected = (" ".join(rng.choices(words, k=rng.randint(2, 8))) for _ in range(3))
            row = {
                "prompt": f"{prompt} {first + k} :",
                "chosen": f" {chosen} good",
                "rejected": f" {rejected} bad",
                "margin": k + 1,
            }
            file.write(json.dumps(row) + "\n")


def command(options: argparse.Namespace, folder: Path, objective: str, kill: str | None = None) -> list[str]:
    """Dropout, accumulation, a ragged step, AdamW, a schedule, a checkpoint and a validation every two steps."""
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2}
    strategy, *distributed = STRATEGIES[options.strategy]
    line = [sys.executable, "-m", "lit_pref", "fit", "--run_dir", folder, "--ckpt_path", "last", "--data.train"]
    line += [options.folder / "train.jsonl", "--data.val", options.folder / "val.jsonl"]
    line += ["--data.global_batch=8", "--data.micro_batch=2", f"--data.workers={options.workers}"]
    line += [
        f"--model.policy.config={json.dumps(config)}",
        "--model.policy.vocabulary=300",
        "--model.policy.dropout=0.1",
    ]
    line += [f"--model.objective={objective}", *OBJECTIVES[objective]]
    line += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.01", "--model.schedule=Cosine"]
    line += ["--trainer.accelerator=cpu", f"--trainer.devices={options.devices}", f"--trainer.strategy={strategy}"]
    if strategy == "ModelParallelStrategy":
        line += [
            f"--trainer.strategy.data_parallel_size={options.devices}",
            "--trainer.strategy.tensor_parallel_size=1",
        ]
    if distributed:
        line += [f"--trainer.strategy.save_distributed_checkpoint={distributed[0]}"]
    line += ["--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every=2"]
    line += ["--trainer.callbacks+=kill_test.History", f"--trainer.callbacks.folder={folder}"]
    line += [] if kill is None else [f"--trainer.callbacks.kill={kill}"]
    line += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    line += ["--trainer.callbacks.patience=1000", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    line += [f"--trainer.max_epochs={options.epochs}", "--trainer.gradient_clip_val=1.0", "--print_summary=false"]
    return [str(argument) for argument in [*line, "--trainer.enable_progress_bar=false"]]


def batches(folder: Path) -> int:
    """Training batches that the first rank has begun so far."""
    history = folder / "history-0.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def start(
    options: argparse.Namespace, folder: Path, objective: str, kill: str | None = None
) -> subprocess.Popen[bytes]:
    """The run, in a process group of its own, from its newest checkpoint where it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment["LIT_PREF_CACHE"] = str(folder / "cache")  # its own, so that each run fills a store
    log = (folder / "log.txt").open("ab")
    line = command(options, folder, objective, kill)
    return subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill_at(process: subprocess.Popen[bytes], folder: Path, more_batches: int, seconds: float) -> bool:
    """Kill the process group that many batches and seconds from now; False if the run was done before."""
    target = batches(folder) + more_batches
    while batches(folder) < target:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"the run failed ({process.returncode}):\n" + (folder / "log.txt").read_text()[-3000:])


def kill_once(options: argparse.Namespace, folder: Path, objective: str, rng: random.Random) -> str | None:
    """Start or resume the run and kill it; return the moment, or None if the run was done before."""
    moments = [name for name in options.moments if name != "filling" or objective == "MMPO"]
    moment, seconds = rng.choice(moments), rng.uniform(0, 1)
    if moment == "training":
        process = start(options, folder, objective)
        more = rng.randint(0 if batches(folder) else 1, 8)
        return "training" if kill_at(process, folder, more, 0.3 * seconds) else finish(process, folder)
    number = 1 if moment in ("filling", "export") else rng.randint(1, 3)
    (folder / "killed").unlink(missing_ok=True)
    process = start(options, folder, objective, f"{moment} {number} {seconds * MOMENTS[moment]:.5f}")
    if process.wait() == -signal.SIGKILL and (folder / "killed").exists():
        return moment
    return finish(process, folder)


def killed_run(options: argparse.Namespace, folder: Path, objective: str, rng: random.Random, kills: int) -> list[str]:
    """Kill a run at most so many times until it is done; return the moments."""
    moments: list[str] = []
    while len(moments) < kills:
        moment = kill_once(options, folder, objective, rng)
        if moment is None:
            return moments
        moments.append(moment)
        left = sorted(path.name for path in (folder / "checkpoints").glob("step=*.ckpt"))
        print(f"  {moment:10}  after {batches(folder):3} batches  {left[-1] if left else '-'}", flush=True)
    finish(start(options, folder, objective), folder)
    return moments


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--moments", nargs="+", choices=["training", *MOMENTS], default=["training", *MOMENTS])
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_test"))
    options = parser.parse_args()
    options.strategy = options.strategy or ("ddp" if options.devices > 1 else "auto")
    options.folder = options.folder.resolve()
    return options


def main() -> None:
    options = parsed()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(options.folder / "train.jsonl", PAIRS)
    write_pairs(options.folder / "val.jsonl", 5, first=PAIRS)
    whole = {}
    for objective in options.objectives:
        never = options.folder / f"never-killed-{objective}"
        finish(start(options, never, objective), never)
        whole[objective] = outcome(never)
        print(f"{objective}, {options.strategy}, never killed: {batches(never)} batches a rank", flush=True)
    rng, moments, rows, lost = random.Random(options.seed), list[str](), list[dict[str, Any]](), 0
    while len(moments) < options.kills:
        number = len(rows) + 1
        folder, objective = options.folder / f"killed-{number}", options.objectives[number % len(options.objectives)]
        moments += killed_run(options, folder, objective, rng, options.kills - len(moments))
        differ = differences(outcome(folder), whole[objective])
        missed = uneven(folder, options.devices, options.epochs, PAIRS)
        lost += len(differ) + missed
        rows.append({"run": number, "objective": objective, "different": differ, "pairs not once an epoch": missed})
        print(f"{number}: {len(differ)} differences {differ[:8]}, {missed} pairs not once an epoch", flush=True)
    result = {"kills": len(moments), "moments": {name: moments.count(name) for name in sorted(set(moments))}}
    result |= {"strategy": options.strategy, "devices": options.devices, "lost": lost, "runs": rows}
    (options.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['moments']} in {len(rows)} run(s): {'nothing lost' if lost == 0 else f'{lost} LOST'}")
    sys.exit(0 if lost == 0 else 1)


if __name__ == "__main__":
    main()
