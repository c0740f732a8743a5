"""Tasks of lm-eval (EleutherAI's evaluation harness), run on an exported model through its Python interface."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pref.errors import UserError
from lit_pref.hints import did_you_mean
from lit_pref.judging.comparison import Comparison, Interval, PromptBootstrap, compare, matched, mean_of
from lit_pref.metrics.records import Records


@dataclass(frozen=True)
class TaskResults:
    """The metrics of each task with intervals over its items, and a record for each item and metric.

    `lower_is_better` has the tasks and metrics of which a lower value is better.
    """

    numbers: dict[str, dict[str, Interval]]
    records: Records
    lower_is_better: frozenset[tuple[str, str]] = frozenset()


def run_tasks(
    folder: str,
    tasks: Sequence[str],
    task_folder: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> TaskResults:
    """Run tasks of lm-eval.

    Args:
        folder: of a language model, or its name on the hub.
        tasks: their names.
        task_folder: a folder with YAML files of further tasks.
        limit: the most items of each task.
        few_shot: the number of examples in a prompt; None takes the task's own.
        chat: put prompts into the chat template.
        batch_size: of lm-eval's model.
        device: of the model.
        dtype: of its weights.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: a task is unknown, or lm-eval cannot run it.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    for name in tasks:
        if name not in manager.all_tasks:
            raise UserError(
                f"lm-eval knows no task {name!r}{did_you_mean(name, manager.all_tasks)}; `lm-eval ls tasks` lists all, "
                "and --task_folder names a folder with tasks of your own"
            )
    try:
        found: Any = simple_evaluate(
            model="hf",
            model_args={"pretrained": folder, "dtype": dtype, "trust_remote_code": trust_remote_code},
            tasks=list(tasks),
            num_fewshot=few_shot,
            batch_size=batch_size,
            device=device,
            limit=limit,
            apply_chat_template=chat,
            task_manager=manager,
            log_samples=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"lm-eval could not run {', '.join(tasks)} on {folder}: {error}") from error
    records = _records(found["samples"])
    lower = {
        (task, metric)
        for task, metrics in found.get("higher_is_better", {}).items()
        for metric, higher in metrics.items()
        if higher is False
    }
    return TaskResults(_numbers(found["results"], records), records, frozenset(lower))


def compare_tasks(a: TaskResults, b: TaskResults, names: tuple[str, str]) -> list[Comparison]:
    """Return the paired difference of two models in each metric that is a mean over items."""
    first, second, _ = matched(a.records, b.records)
    found = []
    for task, metrics in a.numbers.items():
        for metric in metrics:
            here = [k for k, own in enumerate(first["metric"]) if own == metric and first["task"][k] == task]
            if not here or metric not in b.numbers.get(task, {}):
                continue
            one, other = (mean_of([records["value"][k] for k in here]) for records in (first, second))
            bootstrap = PromptBootstrap([first["item"][k] for k in here])
            higher = (task, metric.partition(" (")[0]) not in a.lower_is_better
            found.append(compare(one, other, bootstrap, f"{task} {metric}", names, higher))
    return found


def _records(samples: dict[str, list[dict[str, Any]]]) -> Records:
    records: Records = defaultdict(list)
    for task, every in samples.items():
        for sample in every:
            for name in sample["metrics"]:
                value = sample[name]
                if not isinstance(value, int | float):
                    continue  # such as the parts of a corpus-level score
                metric = name if sample["filter"] == "none" else f"{name} ({sample['filter']})"
                row = {"id": f"{task} {sample['doc_id']} {metric}", "task": task, "item": sample["doc_id"]}
                row |= {"metric": metric, "value": float(value), "prompt": str(sample["arguments"][0][0])}
                row |= {"target": str(sample["target"]), "response": _json(sample["filtered_resps"])}
                for column, entry in row.items():
                    records[column].append(entry)
    return dict(records)


def _numbers(results: dict[str, dict[str, Any]], records: Records) -> dict[str, dict[str, Interval]]:
    numbers: dict[str, dict[str, Interval]] = {}
    for task, found in results.items():
        for key, value in found.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            metric = name if filtered == "none" else f"{name} ({filtered})"
            error = found.get(f"{name}_stderr,{filtered}")
            numbers.setdefault(task, {})[metric] = _interval(task, metric, float(value), error, records)
    return numbers


def _interval(task: str, metric: str, value: float, error: Any, records: Records) -> Interval:
    """Return the interval over items if the metric is their mean, else that of lm-eval's standard error."""
    here = [
        k
        for k, own in enumerate(records.get("metric", []))
        if own == metric and records["task"][k] == task and math.isfinite(records["value"][k])
    ]
    if here:
        found = PromptBootstrap([records["item"][k] for k in here]).interval(
            mean_of([records["value"][k] for k in here])
        )
        if math.isclose(found.value, value, abs_tol=1e-9):
            return found
    half = 1.96 * error if isinstance(error, int | float) else math.nan
    return Interval(value, value - half, value + half)


def _json(value: Any) -> str:
    return value[0] if len(value) == 1 and isinstance(value[0], str) else json.dumps(value, default=str)
