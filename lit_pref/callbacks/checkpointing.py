"""Writes checkpoints that are complete or absent, and finds the newest one."""

import functools
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed.checkpoint.api import CheckpointException

from lit_pref.callbacks.termination import Terminated
from lit_pref.callbacks.verification import verify
from lit_pref.errors import UsageError, UserError
from lit_pref.printing import say


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name and renames it, so that a killed save leaves the file whole or absent.

    Lightning's own writer uses the system's temporary folder; a move from there to another file system is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            with open(unfinished, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise _unwritable(target, error) from error
        finally:
            unfinished.unlink(missing_ok=True)
        _sync(target.parent)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        verify(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


def save_shards(strategy: Any, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
    """Write a folder of shards under another name, and rename it when all processes have written theirs.

    Lightning writes to the folder itself: a killed save leaves one that looks like a damaged checkpoint.
    """
    target = Path(strategy.broadcast(filepath))
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        type(strategy).save_checkpoint(strategy, checkpoint, unfinished, storage_options)
        strategy.barrier("all shards are written")
        if strategy.is_global_zero:
            _sync(unfinished / "meta.pt")  # torch has synced the shards and their index
            _sync(unfinished)
            strategy.remove_checkpoint(target)
            unfinished.rename(target)
            _sync(target.parent)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise _unwritable(target, error) from error
    finally:
        if strategy.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)


def _unwritable(target: Path, error: BaseException) -> UserError:
    failures = getattr(error, "failures", None)  # torch's, by rank, of a checkpoint in shards
    reason = str(next(iter(failures.values()))[0] if failures else error)
    return UserError(
        f"the checkpoint {target} cannot be written ({reason.splitlines()[0]}): make room on the disk and "
        "resume from the one before it (--ckpt_path last)"
    )


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints(Checkpoint):
    """Saves every `every` optimizer steps and at the end, under names that contain the step, and deletes old ones.

    It keeps no state in checkpoints: the newest one is found in the folder when training starts. A checkpoint is saved
    after the validation that follows its step, and at the end of an epoch after everything else that belongs to the
    epoch, such as early stopping: work since the last checkpoint is repeated on resume. Folders of shards are verified
    before they are loaded, as `AtomicCheckpointIO` verifies files.

    Args:
        every: Optimizer steps between two checkpoints.
        keep: The number of newest checkpoints to keep; null keeps all.
        folder: The folder of the checkpoints; null is `checkpoints` in the run folder.
    """

    def __init__(self, every: int = 200, keep: int | None = 2, folder: str | None = None) -> None:
        if every < 1 or (keep is not None and keep < 1):
            raise UsageError(f"Checkpoints: every is {every} and keep is {keep}; both must be at least 1")
        self.every = every
        self.keep = keep
        self.folder = folder
        self._seen_step = 0
        self._saved_step: int | None = None
        self._due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Folders of shards are neither read nor written through the plugin for files.
        strategy: Any = trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            load = type(strategy).load_checkpoint

            def verified(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
                verify(Path(checkpoint_path))
                return load(strategy, checkpoint_path, *args, **kwargs)

            strategy.load_checkpoint = verified  # type: ignore[method-assign]
            if strategy._save_distributed_checkpoint:
                strategy.save_checkpoint = functools.partial(save_shards, strategy)  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        if trainer.is_global_zero:
            for unfinished in self.where(trainer).glob(".step=*.ckpt.unfinished"):  # of a killed save
                trainer.strategy.remove_checkpoint(unfinished)
        newest = self._saved_step = newest_step(self.where(trainer))
        if newest is not None and newest > trainer.global_step and not trying_out(trainer):
            raise UsageError(
                f"{self.where(trainer)} contains a checkpoint of step {newest} and this run resumes from step "
                f"{trainer.global_step}: resume from the newest (--ckpt_path last), give the run another folder "
                "(--run_dir), or delete the newer checkpoints"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Save only when the step number has changed, which is after the step's last micro-batch, not between two of
        # them.
        if trainer.global_step != self._seen_step:
            self._seen_step = trainer.global_step
            if trainer.global_step % self.every == 0:
                self._due = True
        if self._due and not trainer.is_last_batch and not _validates_now(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The folder's content does not decide, because another rank may have added to it meanwhile: all ranks save or
        # none.
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that was killed between its last save and this has kept one more, and takes no step when it is resumed.
        if not trying_out(trainer):
            self._delete_old(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | Terminated) and trainer.is_global_zero:
            kept = words_for_resuming(self.where(trainer))
            how = "ended by SIGTERM" if isinstance(exception, Terminated) else "interrupted"
            say(f"{how} at step {trainer.global_step}; {kept}")

    def where(self, trainer: Trainer) -> Path:
        """The folder of the checkpoints."""
        return Path(self.folder).expanduser() if self.folder else Path(trainer.default_root_dir) / "checkpoints"

    def _save(self, trainer: Trainer) -> None:
        if trying_out(trainer):
            return
        folder = self.where(trainer)
        self._saved_step, self._due = trainer.global_step, False
        trainer.save_checkpoint(folder / f"step={trainer.global_step:08d}.ckpt")
        self._delete_old(trainer)

    def _delete_old(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.keep is not None:
            kept = complete_checkpoints(self.where(trainer))[-self.keep :]
            # Incomplete ones as well: a run that is killed while it deletes a folder of shards leaves part of it.
            for path in all_checkpoints(self.where(trainer)):
                if kept and step_of(path) < step_of(kept[0]):
                    trainer.strategy.remove_checkpoint(path)


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    loop = trainer.fit_loop
    return sum(trainer.num_val_batches or [0]) > 0 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def trying_out(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def checkpoint_folder(trainer: Trainer, run_dir: Path) -> Path:
    """Return the folder to which a run saves its checkpoints."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    saving = [callback.where(trainer) for callback in callbacks if isinstance(callback, Checkpoints)]
    return saving[0] if saving else run_dir / "checkpoints"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to their end, by step, the newest last."""
    return [path for path in all_checkpoints(folder) if is_complete(path)]


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, also damaged ones, by step, the newest last."""
    found = [path for path in folder.glob("step=*.ckpt") if re.fullmatch(r"step=\d+\.ckpt", path.name)]
    return sorted(found, key=step_of)


@rank_zero_only
def set_aside(damaged: Path) -> None:
    """Rename a damaged checkpoint, so that a run can resume from the one before it."""
    damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))


def step_of(path: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(path.stem.removeprefix("step="))


def step_in(path: Path) -> int:
    """The optimizer step of a complete checkpoint, read from its name if this project has named it."""
    if re.fullmatch(r"step=\d+\.ckpt", path.name):
        return step_of(path)
    content = path if path.is_file() else path / "meta.pt"
    return int(torch.load(content, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def check_complete(path: Path) -> None:
    """Refuse a path that cannot be loaded.

    Raises:
        UserError: `path` does not exist, is a run folder, was not written to its end, or was damaged since.
    """
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; --ckpt_path last takes the newest of the run folder")
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} is a run folder; give one of {path / 'checkpoints'}")
    if not is_complete(path):
        raise UserError(f"{path} is not a checkpoint, or was not written to its end; give another one")
    verify(path)


def newest_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint in `folder`; None if there is none."""
    complete = complete_checkpoints(folder)
    return step_of(complete[-1]) if complete else None


def words_for_resuming(folder: Path) -> str:
    """Say from which step a run resumes whose checkpoints are in `folder`."""
    newest = newest_step(folder)
    return "nothing is saved yet" if newest is None else f"--ckpt_path last resumes from step {newest}"


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is complete: a file, or a folder of shards whose index and metadata can be read."""
    if path.is_file():
        return zipfile.is_zipfile(path)
    return (path / ".metadata").is_file() and zipfile.is_zipfile(path / "meta.pt")
