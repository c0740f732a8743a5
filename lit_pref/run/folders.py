"""Determines the folder of a run, and the checkpoint to load."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_pref.callbacks.checkpointing import check_complete, complete_checkpoints
from lit_pref.errors import UsageError, UserError
from lit_pref.run.first_lines import say


def folder_of_run(run_dir: str | None, configs: Sequence[Any], resumes: bool) -> Path:
    """The run folder: the given one, or one named after the last configuration file.

    With the configuration in a run folder, resuming and evaluation use that folder; a new training run gets another one
    next to it.

    >>> folder_of_run(None, ["configs/mmpo.yaml"], resumes=False)
    PosixPath('runs/mmpo')

    Raises:
        UsageError: no folder and no file is given.
    """
    if run_dir is not None:
        return Path(run_dir)
    files = [config for config in configs if config is not None]
    if not files:
        raise UsageError("give the run a folder: --run_dir runs/NAME (without --config there is no name to take)")
    path = Path(str(files[-1]))
    if path.stem != "config":
        return Path("runs") / path.stem
    return path.parent if resumes else Path("runs") / f"{path.resolve().parent.name}-again"


def make_folder(run_dir: Path) -> None:
    """Create the run folder.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run folder {run_dir} cannot be created: {error.strerror}; give another one") from error


def refuse_used(run_dir: Path) -> None:
    """Refuse to start a new training in the folder of another run.

    Raises:
        UsageError: it contains a run.
    """
    # Other ranks are started after the first has begun to write.
    first = "LOCAL_RANK" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0"
    if first and (run_dir / "config.yaml").exists():
        raise UsageError(
            f"{run_dir} already contains a run; resume it (--ckpt_path last), name another folder "
            f"(--run_dir {run_dir}-2), or delete it"
        )


def newest_checkpoint(folder: Path, or_start: bool) -> str | None:
    """The newest complete checkpoint in a folder; None if there is none and the run may start without one.

    Raises:
        UsageError: there is no checkpoint, but one is needed.
    """
    complete = complete_checkpoints(folder)
    if complete:
        return str(complete[-1])
    if not or_start:
        raise UsageError(f"--ckpt_path last: there is no complete checkpoint in {folder}")
    say(f"--ckpt_path last: no complete checkpoint in {folder} yet, starting from the beginning")
    return None


def check_checkpoint(path: str | None) -> str | None:
    """Return the path, after checking that it is a complete checkpoint.

    Raises:
        UserError: it cannot be loaded.
    """
    if path is not None:
        check_complete(Path(path))
    return path
