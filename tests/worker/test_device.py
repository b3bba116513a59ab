"""Where and how a worker computes."""

from __future__ import annotations

import os

import pytest
import torch

from worker.device import choose_device, choose_dtype, choose_threads


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_half_of_the_cores_at_least_one(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    assert choose_threads(0) == threads
    assert choose_threads(3) == 3


def test_a_worker_without_a_gpu_computes_in_float32_on_the_cpu() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype(torch.device("cpu")) == torch.float32
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
