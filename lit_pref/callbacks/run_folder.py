"""The run folder: configuration, manifest and tokenizer, written at the start of a run."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_pref.references.stored import Stored

LIBRARIES = ("lit_pref", "torch", "lightning", "transformers", "tokenizers", "peft", "jsonargparse", "pyarrow", "numpy")
HPARAM_METRICS = ("val/loss", "val/kl_to_target", "val/rewards/accuracies", "val/calibration/ece")


class RunFolder(Callback):
    """Writes the record of a run: `config.yaml`, `manifest.json`, `tokenizer/`, and the HParams of TensorBoard.

    Args:
        config: The resolved configuration as YAML text, complete enough to repeat the run.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        # The folder is not made earlier, so that a run that is refused leaves nothing behind.
        folder = Path(trainer.default_root_dir)
        self._write_config(folder)
        module: Any = pl_module
        tokenizer = module.spec.load_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        manifest = describe_run(trainer, module, tokenizer)
        # `export` reads the tokenizer of the run folder, and compares it with these.
        files = sorted(path for path in (folder / "tokenizer").iterdir() if path.is_file())
        manifest["tokenizer_files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        # Hyperparameters go into the run's own event file, with the held-out metrics before training, so that a table
        # of runs shows their last values. A resumed run already has this record.
        if trainer.global_step > 0:
            return
        metrics = {key: module.evaluation.before[key] for key in HPARAM_METRICS if key in module.evaluation.before}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(flat(module.plain_config), metrics or {"train/total_steps": module.total_steps})
            else:
                logger.log_hyperparams(flat(module.plain_config))

    def _write_config(self, folder: Path) -> None:
        # A resumed run may have other options than before: both records are kept.
        number = 0
        while True:
            path = folder / ("config.yaml" if number == 0 else f"config-{number}.yaml")
            if not path.exists():
                path.write_text(self.config, encoding="utf-8")
            if path.read_text(encoding="utf-8") == self.config:
                return
            number += 1


def describe_run(trainer: Trainer, module: Any, tokenizer: Any) -> dict[str, Any]:
    """The facts needed to trust or repeat a run: versions, git state, data, models, hardware."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "git": git_state(),
        "data": {
            split: {"digest": digest, "sources": {name: report.to_json() for name, report in reports.items()}}
            for split, (digest, reports) in data.describe().items()
        },
        "selection": module.selected,
        "resumed": module.resumption.changes,
        "tokenizer": digest_of(tokenizer.backend_tokenizer.to_str()),
        "chat_template": digest_of(tokenizer.chat_template) if tokenizer.chat_template else None,
        "policy": {"what": module.spec.describe(), "fingerprint": module.spec.fingerprint()},
        "references": [
            {"what": r.describe(), "fingerprint": r.fingerprint(), "stored": isinstance(r, Stored)}
            for r in module.references
        ],
        "objective": repr(module.objective),
        "layout": module.batch_layout,
        "hardware": {
            "devices": trainer.world_size,
            "accelerator": type(trainer.accelerator).__name__,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "machine": platform.platform(),
        },
    }


def git_state() -> dict[str, Any] | None:
    """The commit of the repository in the working directory, and whether it has changes; None outside a repository."""

    def git(*arguments: str) -> str | None:
        try:
            # Without the program that a foreign repository may name as its watcher of files.
            done = subprocess.run(
                ["git", "-c", "core.fsmonitor=", *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return (
        None if commit is None else {"commit": commit, "changed_files": len((git("status", "-s") or "").splitlines())}
    )


def digest_of(text: str | dict[str, str]) -> str:
    """sha256 of a text, or of named texts."""
    return hashlib.sha256((text if isinstance(text, str) else json.dumps(text, sort_keys=True)).encode()).hexdigest()


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to dotted names, as TensorBoard's HParams needs it.

    >>> flat({"model": {"beta": 0.1, "parts": [1]}})
    {'model.beta': 0.1, 'model.parts': '[1]'}
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return result
