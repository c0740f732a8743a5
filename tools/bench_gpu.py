"""Benchmark on one GPU: lit_pref against TRL on models of real sizes, in bf16.

    python tools/bench_gpu.py --list
    python tools/bench_gpu.py --only 0.5B-a-stored        some scenarios
    python tools/bench_gpu.py                             all of them

Each contender runs alone: a GPU holds one policy with its optimiser. Random weights of the published shapes: time and
memory do not depend on what a model knows.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_ours import Ours
from bench_steps import Loop
from bench_trl import Trl
from bench_work import Work, quiet

DROPPED, STEPS = 5, 50
PEAK = 989e12  # bf16 FLOP/s of an H100 without sparsity

VOCABULARIES = {"0.5B": 151_936, "1B": 128_256, "8B": 128_256}
PAIRS = {"a": 16, "b": 16, "c": 16, "long": 4, "feedback": 16}
REFERENCES = {"stored": (True, 1), "live": (False, 1), "three": (True, 3)}


@dataclass(frozen=True)
class Scenario:
    """One model on one kind of lengths with one kind of references."""

    model: str
    case: str
    references: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.case}-{self.references}"

    @property
    def work(self) -> Work:
        # 8B in full would need 16 bytes a parameter; its head is frozen under LoRA.
        lora = self.model == "8B"
        return Work(self.case, self.model, VOCABULARIES[self.model], PAIRS[self.case], DROPPED + STEPS, lora)

    @property
    def contenders(self) -> dict[str, Ours | Trl]:
        stored, references = REFERENCES[self.references]
        ours = Ours(references=references, stored=stored, device="gpu")
        rivals: dict[str, Ours | Trl] = {"lit_pref": ours, "lit_pref, padded layout": replace(ours, layout="padded")}
        if references == 1:  # TRL has one reference
            rivals["TRL, no checkpointing"] = Trl(stored=stored, device="gpu")
            rivals["TRL, defaults"] = Trl(stored=False, checkpointing=True, device="gpu")
        return rivals


# Three copies of 8B fill a disk.
_ALL = [Scenario(m, c, r) for m in VOCABULARIES for c in PAIRS for r in REFERENCES if (m, r) != ("8B", "three")]
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


class TimedLoop(Loop):
    """The time on the clock at the end of every step, when the GPU has done it, and the most memory since the first."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def end_step(self, model: torch.nn.Module, loss: float) -> None:
        super().end_step(model, loss)
        torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) == DROPPED:
            torch.cuda.reset_peak_memory_stats()


def measure(scenario: Scenario, contender: Ours | Trl, folder: Path) -> dict[str, Any]:
    """Throughput, memory, and the share of the GPU's peak that useful work took; out of memory is an outcome too."""
    work, loop = scenario.work, TimedLoop()
    torch.cuda.empty_cache()
    try:
        contender.train(work, folder, loop)
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}
    assert loop.model is not None
    step_s = statistics.median(b - a for a, b in zip(loop.times[DROPPED - 1 :], loop.times[DROPPED:], strict=False))
    # Useful: every prompt once, no padding; 6 FLOP a parameter and token, 4 where the weights are frozen.
    tokens = work.tokens()["shared"] / work.windows
    responses = sum(len(p["chosen"]) + len(p["rejected"]) for p in work.draw()) / work.windows
    parameters = sum(p.numel() for p in loop.model.parameters())
    return {
        "pairs_per_s": work.pairs / step_s,
        "response_tokens_per_s": responses / step_s,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "useful_share_of_peak": (4 if work.lora else 6) * parameters * tokens / step_s / PEAK,
        "losses": loop.losses,
    }


def most_pairs(scenario: Scenario, contender: Ours | Trl, folder: Path) -> int:
    """The largest power of two of pairs a step that fits."""
    pairs = 1
    while pairs <= 512:
        work = replace(scenario.work, pairs=2 * pairs, windows=2)
        work.write(folder, references=REFERENCES[scenario.references][1])
        try:
            contender.train(work, folder, Loop())
        except torch.cuda.OutOfMemoryError:
            break
        pairs *= 2
    torch.cuda.empty_cache()
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--list", action="store_true", help="the names of the scenarios")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu.json"))
    options = parser.parse_args()
    if options.list:
        print("\n".join(SCENARIOS))
        return
    if not torch.cuda.is_available():
        sys.exit("bench_gpu measures on a CUDA device and torch finds none here; `make bench` measures on a CPU.")
    quiet()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        scenario = SCENARIOS[name]
        for contender_name, contender in scenario.contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                scenario.work.write(Path(folder), references=REFERENCES[scenario.references][1])
                outcome = measure(scenario, contender, Path(folder))
                outcome["most_pairs"] = most_pairs(scenario, contender, Path(folder))
            results.setdefault(name, {})[contender_name] = outcome
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, contender_name, {k: v for k, v in outcome.items() if k != "losses"}, flush=True)


if __name__ == "__main__":
    main()
