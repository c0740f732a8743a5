"""What is said to be a wait of a step: those between the first and the last watched micro-batch."""

import sys
import warnings

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "tools"))
from step_waits import WARNING, waits_of_steps


def run(batches, modes, waiting):
    """A run that waits in some micro-batches, of which torch warns in its debug mode."""

    def fit(callback):
        for k in range(batches):
            callback.on_train_batch_start(None, None, None, k)
            if k in waiting and modes[-1] == "warn":
                warnings.warn(f"called a {WARNING}", stacklevel=1)
            callback.on_train_batch_end(None, None, None, None, k)

    return fit


def test_waits_of_the_watched_steps_are_found_by_their_lines(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    found = waits_of_steps(run(10, modes, waiting={0, 4, 8, 9}))
    assert len(found) == 2 and found[0].startswith("test_watched_steps.py:") and modes[1:] == ["warn", "default"]
    assert waits_of_steps(run(10, modes, waiting={1})) == []
    with pytest.raises(ValueError, match="fewer than 9 micro-batches"):
        waits_of_steps(run(8, modes, waiting=set()))
