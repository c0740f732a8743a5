"""The plan of the benchmark on a GPU: its cells in the order in which they are measured, the most important first."""

from dataclasses import replace

from bench_goals import INSTALLED, LIVE, LIVE_3, OURS, PADDED
from bench_gpu_measure import (
    COMPILED,
    GROUPED,
    HEAD_FP32,
    HEAD_SPLIT,
    LIGER,
    NO_KERNELS,
    NO_METRICS,
    OURS_REWARD,
    STORED_3,
    TRL,
    TRL_LIVE,
    TRL_REWARD,
    Cell,
    attention,
    breakdown,
    device,
    generate,
    head,
    memory,
    models,
    steps,
)
from bench_gpu_steps import Pace
from bench_work import Work

SMALL = Work("c", "0.5B", 151_936, 16)
LARGE = replace(SMALL, model="1.5B", pairs=8)


def _cells() -> list[Cell]:
    def on(case: str, work: Work = SMALL) -> Work:
        return replace(work, case=case)

    return [
        Cell("models", models, 20),
        Cell("device", device, 10),
        Cell("0.5B-c", steps, 45, SMALL, (OURS, PADDED, TRL, NO_METRICS, GROUPED)),
        Cell("head", head, 15),
        Cell("breakdown-0.5B-c", breakdown, 25, SMALL, (OURS, TRL)),
        Cell("attention", attention, 15),
        Cell("0.5B-b-head", steps, 30, on("b"), (OURS, HEAD_FP32, HEAD_SPLIT, NO_KERNELS)),
        Cell("losses-fp32", steps, 35, replace(SMALL, pairs=4), (OURS, TRL), bf16=False),
        Cell("1.5B-c", steps, 40, LARGE, (OURS, TRL)),
        Cell("1.5B-c-lora", steps, 30, replace(LARGE, lora=True), (OURS, TRL)),
        Cell("0.5B-a", steps, 25, on("a"), (OURS, TRL, NO_METRICS)),
        Cell("0.5B-b", steps, 25, on("b"), (OURS, TRL, NO_METRICS)),
        Cell("0.5B-c-references", steps, 40, SMALL, (OURS, STORED_3, LIVE_3, LIVE, TRL_LIVE)),
        # One step a turn: the first one is not counted, and the largest step should be.
        Cell("memory-0.5B-c", memory, 20, SMALL, pace=Pace(warm_up=1, timed=19, block=1)),
        Cell("reward-0.5B-c", steps, 25, SMALL, (OURS_REWARD, TRL_REWARD)),
        Cell("generate-0.5B", generate, 25, SMALL),
        Cell("0.5B-long", steps, 25, replace(SMALL, case="long", pairs=4), (OURS, PADDED, TRL)),
        Cell("0.5B-c-installed", steps, 25, SMALL, (OURS, INSTALLED)),
        Cell("1.5B-a", steps, 35, on("a", LARGE), (OURS, TRL)),
        Cell("0.5B-c-liger", steps, 20, SMALL, (LIGER,), against="0.5B-c"),  # it changes the model's classes
        Cell("0.5B-c-compiled", steps, 60, SMALL, (COMPILED,), against="0.5B-c"),
    ]


CELLS = {cell.name: cell for cell in _cells()}
