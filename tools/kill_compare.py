"""Compares what two runs leave behind, bit for bit: checkpoints, records, logged values, and the exported model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

OF_THE_MACHINE = ("_per_second", "peak_memory")
"""Ends of the names of logged values that no two runs share."""
OF_THE_RUN = ("config", "changes", "settings")
"""What `checkpoint_info` says of the folder and of this process."""
OF_THE_PROCESS = ("config", "events.", "history-", "killed", "log.txt", "manifest")
"""Beginnings of the names of files in a run folder that each process of a run adds."""


def differences(first: Any, second: Any, at: str = "") -> list[str]:
    """Return the paths at which two nested structures differ, to the last bit of every tensor."""
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [at]
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{at}: other keys {sorted(map(str, first.keys() ^ second.keys()))[:4]}"]
        return [d for key in first for d in differences(first[key], second[key], f"{at}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [d for k, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{at}/{k}")]
    return [] if first == second or (first != first and second != second) else [at]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a finished run has left in its folder and that a resumed one must leave as well."""
    from lit_pref.run.checkpoint_model import read_checkpoint

    checkpoint = read_checkpoint(sorted((folder / "checkpoints").glob("step=*.ckpt"))[-1])
    checkpoint["lit_pref"] = {k: v for k, v in checkpoint["lit_pref"].items() if k not in OF_THE_RUN}
    return {
        "checkpoint": checkpoint,
        "folder": sorted(path.name for path in folder.iterdir() if not path.name.startswith(OF_THE_PROCESS)),
        "checkpoints": sorted(str(path.relative_to(folder)) for path in (folder / "checkpoints").rglob("*")),
        "records": records(folder),
        "logged": logged(folder),
        "hf": {path.name: content(path) for path in (folder / "hf").iterdir() if path.suffix != ".md"},
    }


def content(path: Path) -> Any:
    """The content of an exported file, without the path of the checkpoint."""
    if path.name != "lit_pref.json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "checkpoint"}


def records(folder: Path) -> dict[str, Any]:
    """The validation records by file."""
    import pyarrow.parquet as pq

    return {path.name: pq.read_table(path).to_pydict() for path in sorted((folder / "records").iterdir())}


def logged(folder: Path) -> dict[str, float]:
    """The values in TensorBoard's files by step and name; of one that was logged twice, the later one."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    values: dict[str, float] = {}
    files = sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    for event in (event for file in files for event in EventFileLoader(str(file)).Load()):
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            if plugin == "scalars" and not any(end in value.tag for end in OF_THE_MACHINE):
                values[f"{event.step} {value.tag}"] = float(tensor_util.make_ndarray(value.tensor))
    if not values:
        raise ValueError(f"no logged values in {folder}: two runs without them would look equal")
    return values


def uneven(folder: Path, devices: int, epochs: int, pairs: int) -> int:
    """Pairs that do not occur exactly once an epoch in the steps that count: of a step taken twice, the later one."""
    counted: Counter[tuple[int, str]] = Counter()
    for rank in range(devices):
        lines = (folder / f"history-{rank}.jsonl").read_text().splitlines()
        taken: dict[tuple[int, int], tuple[int, list[str]]] = {}
        for step, epoch, batch, ids in map(json.loads, lines):
            taken[epoch, batch] = (step, ids)
        counted.update((epoch, name) for (epoch, _), (_, ids) in taken.items() for name in ids)
    return epochs * pairs - sum(count == 1 for count in counted.values()) + sum(count > 1 for count in counted.values())
