"""The plan of the benchmark on a GPU: its cells in the order in which they are measured, the most important first."""

from dataclasses import replace

from bench_goals import INSTALLED, LIVE, LIVE_3, OURS, PADDED
from bench_gpu_measure import (
    COMPILED,
    GROUPED,
    HEAD_SPLIT,
    LIGER,
    NO_METRICS,
    OURS_REWARD,
    RECOMPUTED,
    STORED_3,
    TRL,
    TRL_COMPILED,
    TRL_LIVE,
    TRL_RECOMPUTED,
    TRL_REWARD,
    Cell,
    attention,
    breakdown,
    device,
    generate,
    head,
    models,
    steps,
)
from bench_gpu_steps import Pace
from bench_work import Work

MINUTES = 8.0  # the most time for everything
RESERVE_S = 15.0  # for the table and the plot, and for ending what runs
START_S = 30.0  # the first worker's imports; those of the next ones pass while a cell is measured

SMALL = Work("c", "0.5B", 151_936, 16)
LARGE = replace(SMALL, model="1.5B", pairs=8)
LOSSES = Pace(warm_up=1, timed=4, block=4)  # 20 steps
SHORT = Pace(warm_up=1, timed=3, block=3)
# One step a turn: the first one is not counted, and the step of most memory should be.
MEMORY = Pace(warm_up=1, timed=9, block=1)


def _cells() -> list[Cell]:
    lora, long = replace(LARGE, lora=True), replace(SMALL, case="16k", pairs=2)
    a, b = replace(SMALL, case="a"), replace(SMALL, case="b")
    return [
        Cell("models", models, 20),
        Cell("device", device, 8),
        Cell("0.5B-c", steps, 30, SMALL, (OURS, TRL), pace=LOSSES),
        Cell("head", head, 15),
        Cell("breakdown-0.5B-b", breakdown, 20, b, (OURS, TRL)),  # in b all steps are about equally long
        Cell("attention", attention, 13),
        Cell("0.5B-c-more", steps, 36, SMALL, (PADDED, NO_METRICS, GROUPED, INSTALLED), pace=LOSSES, against="0.5B-c"),
        Cell("losses-fp32", steps, 22, replace(SMALL, pairs=4), (OURS, TRL), bf16=False, pace=LOSSES),
        Cell("0.5B-c-liger", steps, 15, SMALL, (LIGER,), pace=LOSSES, against="0.5B-c"),  # it changes classes
        Cell("1.5B-c", steps, 28, LARGE, (OURS, TRL), pace=SHORT),
        Cell("1.5B-c-lora", steps, 28, lora, (OURS, TRL, RECOMPUTED), pace=MEMORY, predicted=RECOMPUTED),
        Cell("0.5B-16k", steps, 28, long, (RECOMPUTED, TRL_RECOMPUTED), pace=Pace(1, 4, 1), predicted=RECOMPUTED),
        Cell("memory-0.5B-c", steps, 12, SMALL, (OURS,), pace=MEMORY, predicted=OURS),
        Cell("0.5B-b", steps, 20, b, (OURS, TRL, HEAD_SPLIT), pace=SHORT),
        Cell("reward-0.5B-c", steps, 14, SMALL, (OURS_REWARD, TRL_REWARD), pace=SHORT),
        Cell("0.5B-c-references", steps, 27, SMALL, (OURS, LIVE, TRL_LIVE, STORED_3, LIVE_3), pace=SHORT),
        Cell("generate-0.5B", generate, 14, SMALL),
        Cell("0.5B-a", steps, 12, a, (OURS, TRL), pace=SHORT),
        Cell("0.5B-c-compiled", steps, 55, SMALL, (COMPILED, TRL_COMPILED), pace=LOSSES, against="0.5B-c"),
    ]


CELLS = {cell.name: cell for cell in _cells()}
