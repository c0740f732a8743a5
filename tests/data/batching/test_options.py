"""The number of processes that prepare batches."""

import os

import pytest
import torch

from lit_pref.data.batching.options import describe_loading, worker_processes

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("cores", "devices", "expected"), [(16, 1, 4), (16, 8, 1), (16, 4, 3), (2, 1, 1), (1, 1, 0), (4, 8, 0)]
)
def test_a_gpu_gets_one_process_less_than_its_share_of_the_cores_and_at_most_four(
    monkeypatch, cores, devices, expected
):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert worker_processes(None, GPU, devices) == expected
    assert worker_processes(None, CPU, devices) == 0
    assert worker_processes(7, GPU, devices) == worker_processes(7, CPU, devices) == 7
    assert worker_processes(0, GPU, devices) == 0


def test_a_task_of_slurm_has_its_own_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert worker_processes(None, GPU, 8) == 2


def test_cores_to_which_a_process_is_bound_are_not_divided_again(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_processes(None, GPU, 16) == 3


def test_the_first_lines_say_it_where_there_are_any():
    assert describe_loading(None, 0, pin_memory=False) == describe_loading(0, 0, pin_memory=False) == ""
    assert describe_loading(3, 3, pin_memory=False) == (
        "3 worker process(es) a device for training and as many for validation"
    )
    assert "null" in describe_loading(None, 0, pin_memory=True)
