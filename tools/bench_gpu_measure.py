"""Measurements of the cells of the benchmark on a GPU: one function for each kind of cell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench_goals import INSTALLED, LIVE, LIVE_3, OURS, PADDED
from bench_gpu_attention import attention_rows
from bench_gpu_device import Device, copy_peak, matmul_peak
from bench_gpu_generate import generating
from bench_gpu_head import head_alone
from bench_gpu_models import REFERENCES, link_models, make_models
from bench_gpu_predict import predicted_memory
from bench_gpu_profile import STEPS, inspect
from bench_gpu_reward import OursReward, TrlReward
from bench_gpu_steps import Pace, compare
from bench_ours import Ours
from bench_trl import Trl, grouped_pairs
from bench_work import Work

STORED_3, COMPILED = "lit_pref, 3 stored references", "lit_pref, compiled blocks"
RECOMPUTED, TRL_RECOMPUTED = "lit_pref, gradient checkpointing", "TRL, gradient checkpointing"
HEAD_SPLIT = "lit_pref, head split"
TRL, NO_METRICS, TRL_LIVE = "TRL", "TRL, no metrics", "TRL, live reference"
GROUPED, LIGER, TRL_COMPILED = "TRL, grouped by length", "TRL, Liger layers", "TRL, torch.compile"
OURS_REWARD, TRL_REWARD = "lit_pref, reward model", "TRL, reward model"


@dataclass(frozen=True)
class Bench:
    """The device, folder and settings with which a cell is measured.

    `matmul` is the FLOP/s of a large multiplication, if known. `keep` is given what a cell has measured so far, which
    is all that is left of it if its process dies or is ended.
    """

    device: Device
    models: Path
    matmul: float | None = None
    keep: Callable[[dict[str, Any]], None] = field(default=lambda result: None)


@dataclass(frozen=True)
class Cell:
    """One measurement.

    `expected_s` is an estimate; the cell may take twice as long. `against` is the cell that has lit_pref on the same
    pairs, if this one has not. `predicted` is the contender whose memory is predicted too.
    """

    name: str
    measure: "Callable[[Cell, Bench, Path], dict[str, Any]]"
    expected_s: float
    work: Work = field(default=Work("c", "0.5B", 151_936, 16))
    contenders: tuple[str, ...] = ()
    bf16: bool = True
    pace: Pace = field(default=Pace())
    against: str | None = None
    predicted: str | None = None

    def small(self) -> "Cell":
        """Return the same cell for a dry run: seconds on a CPU."""
        work = replace(self.work, case="smoke", model="smoke-qwen", vocabulary=512, pairs=2)
        return replace(self, work=work, pace=Pace(1, 2, 1))

    def prepare(self, bench: Bench, folder: Path, windows: int, reward: bool = False) -> Work:
        """Put the models and the pairs of `windows` steps into a folder."""
        work = replace(self.work, windows=windows)
        several = any(name in (STORED_3, LIVE_3) for name in self.contenders)
        link_models(work, bench.models, folder, bench.device, REFERENCES if several else 1, reward)
        work.write_pairs(folder)
        if work.lora:  # beforehand, as it is not a part of TRL's start
            work.write_adapters(folder)
        return work

    def train(self, name: str, bench: Bench, work: Work, folder: Path) -> Callable[[Any], None]:
        return partial(self.contender(name, bench).train, work, folder)

    def contender(self, name: str, bench: Bench) -> Any:
        """Return a contender by its name in the results."""
        gpu = bench.device.is_gpu
        common: dict[str, Any] = {"device": bench.device.accelerator, "bf16": self.bf16}
        attention = bench.device.attention() if self.bf16 else "sdpa"  # flash attention has no fp32
        ours, rival = Ours(**common), Trl(**common, attention=attention)
        backend = "inductor" if gpu else "eager"
        return {
            OURS: ours,
            PADDED: replace(ours, layout="padded"),
            LIVE: replace(ours, stored=False),
            STORED_3: replace(ours, references=REFERENCES),
            LIVE_3: replace(ours, stored=False, references=REFERENCES),
            COMPILED: replace(ours, policy=(("compile", backend),)),
            HEAD_SPLIT: replace(ours, policy=(("head_precision", "split"),)),
            RECOMPUTED: replace(ours, checkpointing=True),
            TRL: rival,
            TRL_COMPILED: replace(rival, compiled=backend),
            TRL_RECOMPUTED: replace(rival, checkpointing=True),
            NO_METRICS: replace(rival, metrics=False),
            TRL_LIVE: replace(rival, stored=False),
            GROUPED: replace(rival, grouped=True, skipped=self.pace.dropped),
            LIGER: replace(rival, liger=gpu),  # its kernels are Triton's
            INSTALLED: replace(rival, stored=False, checkpointing=True, attention="sdpa"),
            OURS_REWARD: OursReward(**common),
            TRL_REWARD: TrlReward(**common, attention=attention),
        }[name]


def steps(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Compare contenders in turns on the same pairs, and the memory that `check` predicts for one, if any."""
    work = cell.prepare(bench, folder, cell.pace.steps, reward=OURS_REWARD in cell.contenders)
    trains = {name: cell.train(name, bench, work, folder) for name in cell.contenders}
    grouped = {GROUPED: grouped_pairs(work, cell.pace.dropped)}
    smaller = {
        name: partial(replace(contender, checkpointing=True).train, work, folder)
        for name in cell.contenders
        if isinstance(contender := cell.contender(name, bench), Ours | Trl)
    }
    result = {"pairs": work.pairs, "tokens": work.tokens(), "against": cell.against}
    if cell.predicted is not None:
        recomputes = cell.contender(cell.predicted, bench).checkpointing
        sizes = predicted_memory(work, folder, bench.device, cell.bf16, recomputes)
        result |= {"predicted": cell.predicted, "predicted_gib": sizes}

    def keep(contenders: Mapping[str, Any]) -> None:
        bench.keep(result | {"contenders": contenders})

    contenders = compare(trains, work, bench.device, cell.pace, bench.matmul, grouped, smaller, keep)
    return result | {"contenders": contenders}


def models(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Make the models that most cells read."""
    sizes = [cell.work.model, "1.5B"] if bench.device.is_gpu else [cell.work.model]
    works = [replace(cell.work, model=size) for size in sizes]
    return {"numbers": make_models(works, bench.models, bench.device)}


def device(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Measure what the device can do at best."""
    numbers = {"matmul_flops": matmul_peak(bench.device), "copy_bytes_per_s": copy_peak(bench.device)}
    return {"about": bench.device.about(), "numbers": numbers}


def breakdown(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Take steps of each contender apart."""
    work = cell.prepare(bench, folder, windows=STEPS)
    result: dict[str, Any] = {"steps": {}}
    for name in cell.contenders:
        result["steps"][name] = inspect(cell.contender(name, bench), work, folder, bench.device)
        bench.keep(result)
    return result


def head(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Measure the head alone."""
    return head_alone(bench.device)


def attention(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Look for NaN and wrong gradients of attention."""
    return {"attention": attention_rows(bench.device.torch.type, dry_run=not bench.device.is_gpu)}


def generate(cell: Cell, bench: Bench, folder: Path) -> dict[str, Any]:
    """Compare `generate` with a bare loop."""
    link_models(cell.work, bench.models, folder, bench.device)
    return generating(cell.work, folder, bench.device)
