"""What the other processes of a run make of one that was lost."""

import atexit
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_pref.errors import UserError
from lit_pref.run.lost_process import close_group, one_sentence
from lit_pref.run.trainer import WorkDone

TRAINER: Any = SimpleNamespace(
    world_size=2, is_global_zero=True, global_step=7, callbacks=[], strategy=SimpleNamespace(cluster_environment=None)
)


@pytest.mark.parametrize(
    "said",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2345",
        "Broken pipe",
        "NCCL error: remote process exited or there was a network error",
        "Socket Timeout",
    ],
)
def test_a_lost_connection_is_one_sentence_with_the_step_to_resume_from(tmp_path: Path, said: str):
    sentence = r"connection to another of the 2 processes was lost, .* at step 7; nothing is saved yet"
    with pytest.raises(UserError, match=sentence), one_sentence(TRAINER, tmp_path):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), one_sentence(TRAINER, tmp_path):
        raise RuntimeError("the shapes differ")


@pytest.mark.parametrize("error, closes", [(None, True), (WorkDone(), True), (ValueError(), False)], ids=str)
def test_the_process_group_is_closed_before_the_interpreter_ends_unless_the_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, closes: bool
):
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    with nullcontext() if error is None else pytest.raises(type(error)), one_sentence(TRAINER, tmp_path):
        if error is not None:
            raise error
    assert registered == [close_group] * closes
