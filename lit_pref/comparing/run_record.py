"""A run as its folder records it: settings in effect, held-out records by step, and whether training ended."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_pref.callbacks.checkpointing import all_checkpoints, step_of
from lit_pref.errors import UsageError, UserError
from lit_pref.hints import did_you_mean
from lit_pref.metrics.records import Records, read_parquet
from lit_pref.run.folder_lock import holder_of

Stage = Literal["val", "validate", "test", "predict"]
"""The command that wrote the records; those of `fit` are called val."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder records it.

    `config` is the resolved configuration in effect at the end, `manifest` that of the last part of a resumed run; both
    are empty if the folder has none, as after training with a Trainer of one's own. `files` has the records of each
    validated step, and `records` are those of `step`. `problems` says what is missing at the end of the run.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    stage: Stage
    files: dict[int, Path]
    step: int
    problems: list[str] = field(default_factory=list)

    @cached_property
    def records(self) -> Records:
        """The records of the compared step."""
        return self.records_at(self.step)

    def records_at(self, step: int) -> Records:
        """Read the records of a step.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return read_parquet(self.files[step])
        except (OSError, ValueError) as error:
            raise UserError(
                f"the records {self.files[step]} cannot be read ({str(error).splitlines()[0]}); write them again: "
                f"validate --config {self.folder / 'config.yaml'} --ckpt_path last, and compare with --records validate"
            ) from error

    @property
    def objective(self) -> str:
        """The objective with its arguments, as the manifest has it; empty if there is no manifest."""
        return str(self.manifest.get("objective", ""))

    @property
    def is_reward_model(self) -> bool:
        """Whether the run trained a reward model: its records have no log-probs."""
        return "chosen_logp" not in self.records

    @property
    def changes(self) -> list[str]:
        """One line for each setting that was changed when the run was resumed."""
        return list(self.manifest.get("resumed", []))


def read_runs(
    folders: Sequence[str], stage: Stage = "val", step: int | None = None, baseline: str | None = None
) -> list[RunRecord]:
    """Read run folders, the baseline first.

    Args:
        folders: run folders, at least two.
        stage: the command that wrote the records.
        step: the optimizer step of the records; None takes the newest of each run.
        baseline: one of the folders, or the name of one; None takes the first.

    Raises:
        UsageError: there are fewer than two, one is named twice, or the baseline is none of them.
        UserError: a folder is none of a run, or has no such records.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if len(paths) < 2:
        raise UsageError("compare needs at least two run folders: compare runs/first runs/second")
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in resolved if resolved.count(path) > 1), None):
        raise UsageError(f"{twice} is named twice; name each run once")
    names = short_names(resolved)
    first = 0
    if baseline is not None:
        named = {**{name: k for k, name in enumerate(names)}, **{str(path): k for k, path in enumerate(resolved)}}
        key = baseline if baseline in names else str(Path(baseline).expanduser().resolve())
        if key not in named:
            raise UsageError(
                f"--baseline {baseline} is none of the runs {', '.join(names)}{did_you_mean(baseline, names)}"
            )
        first = named[key]
    runs = [read_run(path, name, stage, step) for path, name in zip(paths, names, strict=True)]
    return [runs[first], *runs[:first], *runs[first + 1 :]]


def read_run(folder: Path, name: str, stage: Stage = "val", step: int | None = None) -> RunRecord:
    """Read a run folder; see `read_runs`."""
    config_file, manifest = folder / "config.yaml", _last_manifest(folder)
    if not config_file.exists() and not (folder / "records").exists():
        _refuse_folder(folder)
    if "config" in manifest:
        config_file = folder / str(manifest["config"])
    files = {int(path.stem.rpartition("=")[2]): path for path in sorted(folder.glob(f"records/{stage}-step=*.parquet"))}
    if not files or (step is not None and step not in files):
        raise UserError(_no_records(folder, stage, step, files))
    chosen = max(files) if step is None else step
    problems = _problems(folder, chosen, step is None and stage == "val")
    return RunRecord(name, folder, _read_config(config_file), manifest, stage, files, chosen, problems)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, with as many of their parents as make them different.

    >>> short_names([Path("/runs/a/dpo"), Path("/runs/b/dpo")]), short_names([Path("/runs/a"), Path("/runs/b")])
    (['a/dpo', 'b/dpo'], ['a', 'b'])
    """
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _last_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the last part of a run: a resumed run numbers them."""
    found = {int(match[1] or 0): path for path in folder.glob("manifest*.json")
             if (match := re.fullmatch(r"manifest(?:-(\d+))?\.json", path.name))}  # fmt: skip
    if not found:
        return {}
    path = found[max(found)]
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or delete it to compare without it") from error


def _read_config(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]}); restore it") from error


def _refuse_folder(folder: Path) -> None:
    if not folder.exists():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no run folder {folder}{did_you_mean(folder.name, siblings)}")
    inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
    runs = f"; the runs in it: {' '.join(map(str, inside[:8]))}" if inside else "; name a folder that `fit` wrote"
    raise UserError(f"{folder} is not the folder of a run: it has neither config.yaml nor records{runs}")


def _no_records(folder: Path, stage: Stage, step: int | None, files: dict[int, Path]) -> str:
    if files:
        return (
            f"{folder} has no {stage} records of step {step}; it has those of {', '.join(map(str, sorted(files)))}: "
            "leave out --step for the newest of each run"
        )
    others = sorted({path.name.partition("-step=")[0] for path in folder.glob("records/*-step=*.parquet")})
    if others:
        return f"{folder} has no {stage} records, but those of {', '.join(others)}: compare with --records {others[0]}"
    if (who := holder_of(folder)) is not None:
        return (
            f"{folder} is still training{who} and has no records of held-out pairs yet: wait for its first validation"
        )
    return (
        f"{folder} has no records of held-out pairs (records/{stage}-step=*.parquet): it was not validated; write them "
        f"by validate --config {folder / 'config.yaml'} --ckpt_path last, and compare with --records validate"
    )


def _problems(folder: Path, step: int, newest: bool) -> list[str]:
    """Return the faults at the end of a run, each as the rest of a sentence that begins with the run."""
    found = []
    if (who := holder_of(folder)) is not None:
        found.append(f"is still training{who}: its records are of step {step}")
    elif not (folder / "hf").exists():
        found.append(f"did not end by itself (it has no hf/): its records are of step {step}")
    elif newest:
        trained = max((step_of(path) for path in all_checkpoints(folder / "checkpoints")), default=step)
        if trained > step:
            found.append(
                f"was validated last at step {step} and trained to step {trained}: for its end, validate --config "
                f"{folder / 'config.yaml'} --ckpt_path last, and compare with --records validate"
            )
    if step == 0:
        found.append("has records of step 0: its policy is the one before training")
    return found
