"""The benchmark's goals: numbers computed from its results, and the values that they should reach."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The contenders' names in results and page.
OURS, SHARED, PADDED = "lit_pref", "lit_pref, shared layout", "lit_pref, padded layout"
UNFUSED = "lit_pref, fused: false"
LIVE, LIVE_2, LIVE_3 = "lit_pref, live reference", "lit_pref, 2 live references", "lit_pref, 3 live references"
STORED_EPOCHS, LIVE_EPOCHS = "3 stored references, 3 epochs", "3 live references, 3 epochs"
COMPACT, NO_METRICS = "TRL-compact", "TRL-compact, no metrics"
COMPACT_LIVE = "TRL-compact, live reference"
INSTALLED, NO_CHECKPOINTING = "TRL as installed", "TRL as installed, no checkpointing"
INSTALLED_STORED = "TRL as installed, stored reference, no checkpointing"

Cells = dict[str, Any]  # name of a cell -> its results


@dataclass(frozen=True)
class Goal:
    """A number that must reach `floor` and should reach `target`; `at_most` where less is better."""

    name: str
    value: Callable[[Cells], float]
    cell: str
    floor: float
    target: float | None = None
    unit: str = "x"
    at_most: bool = False

    def reaches(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound

    def verdict(self, value: float) -> str:
        if not self.reaches(value, self.floor):
            return "MISSED"
        if self.target is None:
            return "met"
        return "target met" if self.reaches(value, self.target) else "floor met"


def ratio(cell: str, rival: str, key: str = "cpu_s", ours: str = OURS) -> Callable[[Cells], float]:
    """How many times what ours takes the rival takes: the median over steps, each on the same pairs."""

    def value(cells: Cells) -> float:
        contenders = cells[cell]["contenders"]
        pairs = zip(contenders[rival][key], contenders[ours][key], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    return value


def totals(cell: str, rival: str, ours: str) -> Callable[[Cells], float]:
    """The same of whole runs."""

    def value(cells: Cells) -> float:
        contenders = cells[cell]["contenders"]
        return sum(contenders[rival]["cpu_s"]) / sum(contenders[ours]["cpu_s"])

    return value


def process(cells: Cells) -> float:
    contenders = cells["processes"]["contenders"]
    return contenders[INSTALLED]["process_mib"] / contenders[OURS]["process_mib"]


def number(cell: str, name: str, minus: str | None = None) -> Callable[[Cells], float]:
    def value(cells: Cells) -> float:
        numbers = cells[cell]["numbers"]
        return numbers[name] - (numbers[minus] if minus else 0.0)

    return value


def speed(cell: str, rival: str = "bare_s") -> Callable[[Cells], float]:
    def value(cells: Cells) -> float:
        return cells[cell]["numbers"][rival] / cells[cell]["numbers"]["lit_pref_s"]

    return value


COMPACT_GOALS = {  # time: floor, target; memory: floor, target
    "a-s-32k": (1.8, 2.2, 2.5, 3.0),
    "b-s-32k": (1.8, 2.2, 3.0, 4.5),
    "c-s-32k": (2.4, 3.0, 3.0, 4.5),
    "a-s-128k": (2.0, 2.4, 1.7, 2.5),
    "b-s-128k": (2.0, 2.4, 1.7, 2.5),
    "c-s-128k": (2.0, 2.4, 1.7, 2.5),
    "a-m-32k": (1.5, 1.75, 1.6, 1.9),
    "a-s-128k-lora": (2.5, 3.3, 2.2, 2.7),
}
INSTALLED_GOALS = {"a": (5.0, 6.0), "b": (3.0, 3.7), "c": (7.0, 10.0)}
LEAN = 1.6  # with TRL's metrics off and freed memory kept, on both sides


def _goals() -> list[Goal]:
    goals = []
    for cell, (time_floor, time_target, memory_floor, memory_target) in COMPACT_GOALS.items():
        goals.append(Goal(f"{cell}, time", ratio(cell, COMPACT), cell, time_floor, time_target))
        memory = ratio(cell, COMPACT, "memory_mib")
        goals.append(Goal(f"{cell}, memory", memory, cell, memory_floor, memory_target))
        tuned = f"{cell}-tuned"
        goals.append(Goal(f"{cell}, time, no metrics and tuned malloc", ratio(tuned, NO_METRICS), tuned, LEAN))
    for case, (floor, target) in INSTALLED_GOALS.items():
        cell = f"{case}-installed"
        goals.append(Goal(f"{case}-s-32k, time, TRL as installed", ratio(cell, INSTALLED), cell, floor, target))
    goals.append(Goal("a-s-32k, memory of the process, TRL as installed", process, "processes", 3.3, 4.0))
    live = ratio("references", LIVE)
    goals += [
        Goal("a live reference, of a step", lambda c: live(c) - 1, "references", 0.33, 0.28, "", at_most=True),
        Goal(
            "3 stored references over live ones, 3 epochs",
            totals("epochs", LIVE_EPOCHS, STORED_EPOCHS),
            "epochs",
            1.3,
            1.44,
        ),
        Goal("short pairs: auto against padded", ratio("short", OURS, ours=PADDED), "short", 1.05, at_most=True),
        Goal(
            "a step of the loop, over bare",
            number("loop", "lit_pref_ms", "bare_ms"),
            "loop",
            0.8,
            0.5,
            "ms",
            True,
        ),
        Goal("ten metrics", number("loop", "metrics_ms"), "loop", 0.1, None, "ms", True),
        Goal("generate, against a bare loop at its best batch", speed("generate"), "generate", 0.9, 1.0),
        Goal("generate greedily, the same", speed("generate-greedy"), "generate-greedy", 0.9, 1.0),
        Goal("rewards, against padded batches", speed("reward-score", "file_order_s"), "reward-score", 2.0),
        Goal("rewards, against padded and sorted batches", speed("reward-score", "sorted_s"), "reward-score", 1.0),
        Goal("--help", number("start", "help_s"), "start", 0.3, None, "s", True),
        Goal("import lit_pref", number("start", "import_s"), "start", 0.05, None, "s", True),
        Goal("fit beyond its imports", number("start", "fit_s", "fit_imports_s"), "start", 0.4, None, "s", True),
    ]
    return goals


GOALS = _goals()


def measured(cells: Cells) -> list[tuple[Goal, float]]:
    """The goals whose cells have been measured, with their values."""
    return [(goal, goal.value(cells)) for goal in GOALS if goal.cell in cells]


def loss_difference(cell: dict[str, Any], contender: str) -> float | None:
    """The largest relative difference of a step's loss from that of the cell's first contender."""
    contenders = cell["contenders"]
    first = next(iter(contenders))
    if contender == first:
        return None
    pairs = zip(contenders[contender]["losses"], contenders[first]["losses"], strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)
