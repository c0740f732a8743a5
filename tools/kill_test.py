"""Kills a run repeatedly, resumes it each time, and compares the result with a run that was never killed.

    python tools/kill_test.py --kills 20                                       DDP, two processes
    python tools/kill_test.py --kills 5 --strategy fsdp-distributed            FSDP2, checkpoints in shards

A run is killed (SIGKILL, all its processes) some training batches and a fraction of a second after it began to train,
at moments drawn from a seed; it is resumed with `--ckpt_path last`. When it is done it is compared bit for bit with the
run that was not killed (weights, optimiser, objective, schedule, position), and every pair must occur once an epoch in
the steps that count. If kills are left, a new run begins.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

STRATEGIES = {
    "auto": ["auto"],
    "ddp": ["ddp"],
    "fsdp": ["ModelParallelStrategy", "false"],
    "fsdp-distributed": ["ModelParallelStrategy", "true"],
}
PAIRS = 22  # windows of 8, 8 and 6 pairs


class History(Callback):
    """Appends (optimiser steps before, epoch, ids of real pairs) of every micro-batch to a file of its rank."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

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


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """Dropout, accumulation, a ragged window, a moving beta, AdamW, a schedule, a checkpoint every two steps."""
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
    line += ["--model.objective=EpsilonDPO", "--model.objective.epsilon=0.05", "--model.objective.beta=0.1"]
    line += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.01", "--model.schedule=Cosine"]
    line += ["--trainer.accelerator=cpu", f"--trainer.devices={options.devices}", f"--trainer.strategy={strategy}"]
    if distributed:
        line += [
            f"--trainer.strategy.data_parallel_size={options.devices}",
            "--trainer.strategy.tensor_parallel_size=1",
        ]
        line += [f"--trainer.strategy.save_distributed_checkpoint={distributed[0]}"]
    line += ["--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every=2"]
    line += ["--trainer.callbacks+=kill_test.History", f"--trainer.callbacks.folder={folder}"]
    line += [f"--trainer.max_epochs={options.epochs}", "--trainer.logger=false", "--trainer.gradient_clip_val=1.0"]
    return [str(argument) for argument in [*line, "--trainer.enable_progress_bar=false"]]


def batches(folder: Path) -> int:
    """Training batches that the first rank has begun so far."""
    history = folder / "history-0.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """The run, in a process group of its own, from its newest checkpoint where it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment["LIT_PREF_CACHE"] = str(options.folder / "cache")
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command(options, folder), env=environment, stdout=log, stderr=log, start_new_session=True)


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


def differences(first: Any, second: Any, at: str = "") -> list[str]:
    """Return the paths at which two nested structures differ, to the last bit of every tensor."""
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [at]
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{at}: other keys"]
        return [d for key in first for d in differences(first[key], second[key], f"{at}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [d for k, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{at}/{k}")]
    return [] if first == second else [at]


def final(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint but Lightning's own counters and the configuration, which names the folder."""
    from lit_pref.run.checkpoint_model import read_checkpoint

    checkpoint = read_checkpoint(sorted((folder / "checkpoints").glob("step=*.ckpt"))[-1])
    return {name: value for name, value in checkpoint.items() if name not in ("loops", "lit_pref", "callbacks")}


def uneven(folder: Path, devices: int, epochs: int) -> int:
    """Pairs that do not occur exactly once an epoch in the steps that count: of a step taken twice, the later one."""
    counted: Counter[tuple[int, str]] = Counter()
    for rank in range(devices):
        lines = (folder / f"history-{rank}.jsonl").read_text().splitlines()
        taken: dict[tuple[int, int], tuple[int, list[str]]] = {}
        for step, epoch, batch, ids in map(json.loads, lines):
            taken[epoch, batch] = (step, ids)
        counted.update((epoch, name) for (epoch, _), (_, ids) in taken.items() for name in ids)
    return epochs * PAIRS - sum(count == 1 for count in counted.values()) + sum(count > 1 for count in counted.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_test"))
    options = parser.parse_args()
    options.strategy = options.strategy or ("ddp" if options.devices > 1 else "auto")
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(options.folder / "train.jsonl", PAIRS)
    write_pairs(options.folder / "val.jsonl", 5, first=PAIRS)

    never = options.folder / "never-killed"
    finish(start(options, never), never)
    whole, rng, kills, rounds = final(never), random.Random(options.seed), 0, 0
    rows, lost = [], uneven(never, options.devices, options.epochs)
    print(
        f"{options.strategy}, {options.devices} process(es), never killed: {batches(never)} batches a rank", flush=True
    )
    print("run  kill  after batches  after s  checkpoint left", flush=True)
    while kills < options.kills:
        rounds += 1
        folder = options.folder / f"killed-{rounds}"
        while kills < options.kills:
            process = start(options, folder)
            more, seconds = rng.randint(0 if batches(folder) else 1, 8), rng.uniform(0, 0.3)
            if not kill_at(process, folder, more, seconds):
                break
            kills += 1
            left = sorted(path.name for path in (folder / "checkpoints").glob("step=*.ckpt"))
            print(
                f"{rounds:3}  {kills:4}  {batches(folder):13}  {seconds:7.3f}  {left[-1] if left else '-'}", flush=True
            )
        else:
            process = start(options, folder)
        finish(process, folder)
        differ, missed = differences(final(folder), whole), uneven(folder, options.devices, options.epochs)
        lost += len(differ) + missed
        rows.append({"run": rounds, "different": differ, "pairs not once an epoch": missed})
        print(f"{rounds:3}  done: {len(differ)} differences {differ[:3]}, {missed} pairs not once an epoch", flush=True)
    result = {"kills": kills, "strategy": options.strategy, "devices": options.devices, "lost": lost, "runs": rows}
    (options.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{kills} kills in {rounds} run(s): {'nothing lost' if lost == 0 else f'{lost} LOST'}")
    sys.exit(0 if lost == 0 else 1)


if __name__ == "__main__":
    main()
