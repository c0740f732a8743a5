"""Ends a run on several processes with one sentence when one of them is killed or fails."""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import subprocess_script

from lit_pref.callbacks.checkpointing import checkpoint_folder, words_for_resuming
from lit_pref.errors import UserError
from lit_pref.printing import say
from lit_pref.run.trainer import WorkDone

_LOST = re.compile(
    "connection (closed|reset|refused)|broken pipe|(socket|application) timeout|timed out waiting"
    "|remote process exited|failed to (recv|send)|(send|recv)(bytes|value) fail|connection was likely closed|gloo|nccl",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say in processes that wait for one that has ended."""
_POLL = 0.2  # seconds between two looks at the processes
_GRACE = 20.0  # seconds in which a waiting collective notices by itself that a process is gone
_GLOO_EXIT_SECONDS = 0.5  # for gloo's threads to free their last tensors: a margin, not a guarantee


@contextmanager
def one_sentence(trainer: Trainer, run_dir: Path) -> Iterator[None]:
    """Context in which the loss of one process of a run ends the others with a sentence, as a failed exit.

    By itself, a collective raises an error about its connection, or Lightning kills the first process without a word.

    Args:
        trainer: of the run.
        run_dir: the run folder, for the step from which the run can be resumed.

    Raises:
        UserError: another process was lost; raised on the first rank, and on others whose first rank may be gone.
    """
    if trainer.world_size == 1:
        yield
        return
    watch, parent = _Watch(trainer, run_dir), os.getppid()
    lightnings = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = watch.start  # type: ignore[assignment]
    try:
        try:
            yield
        except WorkDone:
            atexit.register(close_group)
            raise
        atexit.register(close_group)
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        if _has_waiting_parent(trainer, parent):
            sys.exit(1)  # the first process says why
        raise UserError(_sentence(trainer, run_dir, watch.reason())) from error
    finally:
        watch.over.set()
        subprocess_script._launch_process_observer = lightnings


def close_group() -> None:
    """Close the process group, and give the threads of gloo time to end their work.

    A thread of gloo that frees a Python object while the interpreter ends is ended by the interpreter, which C++
    answers with an abort ("terminate called without an active exception"). Destroying the group joins its threads only
    where nothing else holds it, and DDP and FSDP hold it to the end. After a failed run the group stays open, because
    closing it would wait for calls whose other ends are gone.
    """
    if torch.distributed.is_initialized():
        of_gloo = "gloo" in torch.distributed.get_backend()
        torch.distributed.destroy_process_group()
        if of_gloo:
            time.sleep(_GLOO_EXIT_SECONDS)


class _Watch:
    """Looks after the processes that Lightning started on this machine; they are none before `start`."""

    def __init__(self, trainer: Trainer, run_dir: Path) -> None:
        self.over = threading.Event()
        self._trainer, self._run_dir = trainer, run_dir
        self._processes: list[subprocess.Popen[Any]] = []

    def start(self, processes: list[subprocess.Popen[Any]]) -> None:
        """Watch these processes until the run is over."""
        self._processes = processes
        threading.Thread(target=self._run, name="watch of processes", daemon=True).start()

    def reason(self) -> str:
        """Return how a process has ended, as far as it is known."""
        time.sleep(2 * _POLL)  # a connection ends before its process
        for rank, process in enumerate(self._processes, start=1):
            if code := process.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
                return f"process {rank} of 0 to {self._trainer.world_size - 1} {how}"
        return f"the connection to another of the {self._trainer.world_size} processes was lost"

    def _run(self) -> None:
        while not self.over.wait(_POLL):
            if any(process.poll() for process in self._processes) and not self.over.wait(_GRACE):
                self._end()

    def _end(self) -> None:
        """End all processes: the main thread is in a call that does not return."""
        for process in self._processes:
            process.kill()
        say(f"lit_pref: {_sentence(self._trainer, self._run_dir, self.reason())}", error=True)
        os._exit(1)


def _has_waiting_parent(trainer: Trainer, parent: int) -> bool:
    """Whether Lightning started this process from the first one, which still runs."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and not trainer.is_global_zero and os.getppid() == parent


def _sentence(trainer: Trainer, run_dir: Path, reason: str) -> str:
    kept = words_for_resuming(checkpoint_folder(trainer, run_dir))
    hint = "a process that ran out of memory is killed by SIGKILL"
    return f"{reason}, so the run was ended at step {trainer.global_step}; {kept} ({hint})"
