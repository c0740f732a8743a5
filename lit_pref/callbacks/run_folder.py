"""The run folder: configuration, manifest and tokenizer, written at the start of a run."""

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_pref.callbacks.checkpointing import trying_out
from lit_pref.references.stored import Stored

LIBRARIES = ("lit_pref", "torch", "lightning", "transformers", "tokenizers", "peft", "jsonargparse", "pyarrow", "numpy")
HPARAM_METRICS = ("val/loss", "val/kl_to_target", "val/rewards/accuracies", "val/calibration/ece")


class RunFolder(Callback):
    """Writes the record of a run: `config.yaml`, `manifest.json`, `tokenizer/`, and the HParams of TensorBoard.

    A resumed run adds `manifest-1.json`, and `config-1.yaml` if its options differ.

    Args:
        config: The resolved configuration as YAML text, complete enough to repeat the run.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trying_out(trainer):
            return
        # The folder is not made earlier, so that a run that is refused leaves nothing behind.
        folder = Path(trainer.default_root_dir)
        config = config_file(folder, self.config)
        config.write_text(self.config, encoding="utf-8")
        module: Any = pl_module
        tokenizer = module.spec.load_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        manifest = {"config": config.name, **describe_run(trainer, module, tokenizer)}
        # `export` reads the tokenizer of the run folder, and compares it with these.
        files = sorted(path for path in (folder / "tokenizer").iterdir() if path.is_file())
        manifest["tokenizer_files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        file = next(path for path in _numbered(folder, "manifest.json") if not path.exists())
        file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        # Hyperparameters go into the run's own event file, with the held-out metrics before training, so that a table
        # of runs shows their last values. A resumed run already has this record.
        if trainer.global_step > 0:
            return
        metrics = {key: module.evaluation.before[key] for key in HPARAM_METRICS if key in module.evaluation.before}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                compared = compared_settings(module.plain_config) if module.plain_config else {}
                logger.log_hyperparams(compared, metrics or {"train/total_steps": module.total_steps})
            else:
                logger.log_hyperparams(flat(module.plain_config))


def config_file(folder: Path, config: str) -> Path:
    """The file of a resolved configuration in a run folder: the one that holds it, or the first free name.

    A resumed run may have other options than before: the records of both are kept.
    """
    files = _numbered(folder, "config.yaml")
    return next(path for path in files if not path.exists() or path.read_text(encoding="utf-8") == config)


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    """Yield the file of that name, then name-1, name-2, and so on."""
    stem, _, ending = name.rpartition(".")
    yield folder / name
    yield from (folder / f"{stem}-{number}.{ending}" for number in itertools.count(1))


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
    """The commit of the repository in the working directory, and its number of changed files; None outside of one.

    The repository may be somebody else's: nothing that its own configuration names is run. Changed files are not
    counted where it names filters, because git compares files by running them.
    """
    # No watcher of files, no writing of the index (which calls a hook), no fetching of objects.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}

    def git(*arguments: str) -> tuple[int, str]:
        command = ["git", "-c", "core.fsmonitor=", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return -1, ""
        return done.returncode, done.stdout.strip()

    code, commit = git("rev-parse", "HEAD")
    if code != 0:
        return None
    code, filters = git("config", "--show-scope", "--includes", "--get-regexp", r"^filter\..*\.(clean|process)$")
    if code not in (0, 1) or any(line.startswith(("local", "worktree")) for line in filters.splitlines()):
        return {"commit": commit, "changed_files": None, "note": "not counted: its configuration names filters"}
    # Submodules have configurations of their own.
    code, changed = git("status", "--short", "--ignore-submodules=all")
    return {"commit": commit, "changed_files": len(changed.splitlines()) if code == 0 else None}


def digest_of(text: str | dict[str, str]) -> str:
    """sha256 of a text, or of named texts."""
    return hashlib.sha256((text if isinstance(text, str) else json.dumps(text, sort_keys=True)).encode()).hexdigest()


def compared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by which runs are compared, for TensorBoard's HParams: objective, data, optimizer, seeds and policy.

    Args:
        config: the resolved configuration as plain data.
    """
    model, data, trainer = config["model"], config["data"], config["trainer"]
    policy = model["policy"]
    shown = _class_settings("objective", model["objective"])
    if "references" in model:  # a reward model has none
        named = ", ".join(_name_of(part) for part in model["references"] or [])
        shown["references"] = named or "as the objective needs"
    shown |= {name: data[name] for name in ("train", "val", "selection", "mapping") if data[name] is not None}
    shown |= {name: data[name] for name in ("global_batch", "max_length", "max_prompt_length")}
    shown |= _class_settings("optimizer", model["optimizer"]) | _class_settings("schedule", model["schedule"])
    shown |= {name: trainer[name] for name in ("max_epochs", "max_steps", "precision", "gradient_clip_val")}
    shown |= {"seed_everything": config["seed_everything"], "split_seed": data["split_seed"], "data.seed": data["seed"]}
    shown |= {"policy": policy["path"] or policy["config"], "dtype": policy["dtype"], "dropout": policy["dropout"]}
    shown |= {} if policy["head"] == "lm" else {"head": policy["head"]}
    shown |= {f"lora.{name}": value for name, value in (policy["lora"] or {}).items()}
    unseen = {"optimizer.betas", "optimizer.eps", "optimizer.amsgrad", "optimizer.maximize", "optimizer.foreach"}
    unseen |= {"optimizer.capturable", "optimizer.differentiable", "optimizer.fused"}
    return flat({name: value for name, value in shown.items() if value is not None and name not in unseen})


def _class_settings(name: str, setting: Any) -> dict[str, Any]:
    """A configured class under its short name, and its arguments, those of parts included."""
    if not isinstance(setting, dict) or "class_path" not in setting:
        return {name: setting}
    found = {name: _name_of(setting)}
    for argument, value in (setting.get("init_args") or {}).items():
        found |= _class_settings(f"{name}.{argument}", value)
    return found


def _name_of(setting: dict[str, Any]) -> str:
    return str(setting["class_path"]).rpartition(".")[-1]


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
