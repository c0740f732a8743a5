"""Determines the folder of a run, and the checkpoint to load."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lit_pref.callbacks.checkpointing import all_checkpoints, check_complete, set_aside
from lit_pref.callbacks.verification import damage
from lit_pref.errors import UsageError, UserError
from lit_pref.printing import say


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


def refuse_used(run_dir: Path, begun: bool = False) -> None:
    """Refuse to train anew in the folder of another run.

    Args:
        run_dir: the folder.
        begun: whether a run that was ended before its first checkpoint may begin again.

    Raises:
        UsageError: it contains a run.
    """
    # Other ranks are started after the first has begun to write.
    first = "LOCAL_RANK" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0"
    if first and (run_dir / ("hf" if begun else "config.yaml")).exists():
        raise UsageError(
            f"{run_dir} already contains a run; resume it (--ckpt_path last), name another folder "
            f"(--run_dir {run_dir}-2), or delete it"
        )


def newest_checkpoint(folder: Path, or_start: bool) -> str | None:
    """The newest undamaged checkpoint in a folder; None if there is none and the run may start from the beginning.

    Damaged ones are named. Where a run resumes they are renamed, so that it can write its own in their place.

    Raises:
        UsageError: there is none and one is needed.
        UserError: all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(all_checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            for bad, why in damaged:
                say(f"warning     the checkpoint {bad} is damaged ({why}); taking {path.name} instead")
                if or_start:
                    set_aside(bad)
            return str(path)
        damaged.append((path, reason))
    if damaged:
        raise UserError(
            f"--ckpt_path last: no checkpoint in {folder} can be used: "
            f"{', '.join(f'{bad.name} ({why})' for bad, why in damaged)}; restore one, or start a new run in another "
            "folder (--run_dir)"
        )
    if not or_start:
        raise UsageError(f"--ckpt_path last: there is no complete checkpoint in {folder}")
    say(f"--ckpt_path last: no checkpoint in {folder} yet, starting from the beginning")
    return None


def check_checkpoint(path: str | None) -> str | None:
    """Return the path of a checkpoint after checking that it is complete and undamaged.

    Raises:
        UserError: it cannot be loaded.
    """
    if path is not None:
        check_complete(Path(path))
    return path


def refuse_shards(path: str | None, strategy: Strategy) -> None:
    """Refuse a folder of shards if the strategy can read only single files.

    Raises:
        UsageError: the strategy cannot read it.
    """
    if path is not None and Path(path).is_dir() and not isinstance(strategy, ModelParallelStrategy):
        raise UsageError(
            f"{path} is a folder of shards, which {type(strategy).__name__} cannot read: use the strategy that wrote "
            "it (the trainer part of configs/fsdp.yaml), or export it and start from the exported folder"
        )
