"""The memory of a step that `check` predicts, for the comparison with the memory that it takes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_gpu_device import GIB, Device
from bench_work import BETA, Work, longest_row

from lit_pref.run.run import build

NO_SIZES = ("device", "devices", "tokens", "fits")


def predicted_memory(work: Work, folder: Path, device: Device, bf16: bool, checkpointing: bool) -> dict[str, float]:
    """Return GiB in all and by parts, as the report of `check --model` has them.

    `allocated` is the total without what the device itself takes for a process, which the allocator does not count.
    """
    policy: dict[str, Any] = {"path": str(folder / "policy"), "gradient_checkpointing": checkpointing}
    if work.adapters is not None:
        policy["lora"] = asdict(work.adapters)
    config: dict[str, Any] = {
        "model": {
            "policy": policy,
            "objective": {"class_path": "DPO", "init_args": {"beta": BETA}},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-5, "weight_decay": 0.0}},
            "reference_store": True,
        },
        "data": {
            "train": str(folder / "pairs.jsonl"),
            "val_fraction": 0.0,
            "global_batch": work.pairs,
            "max_length": max(8192, *map(longest_row, work.draw())),
        },
        "trainer": {
            "accelerator": device.accelerator,
            "devices": 1,
            "precision": "bf16-mixed" if bf16 else "32-true",
            "max_epochs": 1,
            "gradient_clip_val": 1.0,
        },
        "run_dir": str(folder / "run"),
    }
    report = folder / "check.json"
    build(config).check(model=True, json=report)
    findings = json.loads(report.read_text(encoding="utf-8"))["findings"]
    (found,) = (finding for finding in findings if finding["topic"] == "memory")
    if "total" not in found["numbers"]:
        raise ValueError(f"check predicts nothing: {found}")
    sizes = found["numbers"]
    sizes["allocated"] = sizes["total"] - sizes.get("context", 0)
    return {name: size / GIB for name, size in sizes.items() if size and name not in NO_SIZES}
