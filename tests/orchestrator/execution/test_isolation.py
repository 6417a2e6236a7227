"""What a trial may not leave behind in the process of a worker."""

import _thread
import gc
import math
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.execution import isolation
from orchestrator.execution.isolation import ProcessFootprint, isolated, poisons_process


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def state() -> dict[str, Any]:
    """Return the settings of this process that a trial may change."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "errors": np.geterr(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precision": torch.backends.fp32_precision,
        "convolutions": torch.backends.mkldnn.conv.fp32_precision,
        "products": torch.backends.mkldnn.matmul.fp32_precision,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "onednn": torch.backends.mkldnn.enabled,
        **isolation._process_settings(),
        "timer": math.ceil(signal.getitimer(signal.ITIMER_REAL)[0] / 10_000),  # pytest has one, of an hour
    }


def change_everything(folder: Path) -> None:
    os.environ["HOME"], os.environ["A_TRIAL_WAS_HERE"] = "/nowhere", "1"
    del os.environ["PATH"]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    warnings.simplefilter("error")
    np.seterr(all="raise")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.backends.fp32_precision = "tf32"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.set_float32_matmul_precision("medium")
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = True
    torch.backends.mkldnn.enabled = False
    signal.alarm(1_000_000)
    os.umask(0o777)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.setrecursionlimit(500)
    socket.setdefaulttimeout(0.001)
    gc.disable()


def test_isolated_restores_what_a_trial_changed(tmp_path: Path) -> None:
    before = state()
    with isolated([0]):
        change_everything(tmp_path)
        during = state()
    assert state() == before
    assert all(during[name] != value for name, value in before.items())


def test_isolated_restores_after_an_error(tmp_path: Path) -> None:
    before = state()
    with pytest.raises(RuntimeError, match="no"), isolated([0]):
        change_everything(tmp_path)
        raise RuntimeError("no")
    assert state() == before


@pytest.mark.parametrize("seed", [[0], [2**40, 3, 1]])
def test_isolated_seeds_the_global_generators(seed: list[int]) -> None:
    draws = []
    for _ in range(2):
        with isolated(seed):
            draws.append((random.random(), np.random.random(), float(torch.rand(()))))
        random.random()
    assert draws[0] == draws[1]


def test_trial_that_leaves_nothing_has_no_leftover() -> None:
    footprint = ProcessFootprint()
    assert footprint.leftover() == ""


def test_thread_that_goes_on_is_a_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_GRACE_SECONDS", 0.05)
    footprint, ended = ProcessFootprint(), threading.Event()
    thread = threading.Thread(target=ended.wait, name="loader")
    thread.start()
    assert footprint.leftover() == "it left 1 thread (loader)"
    ended.set()
    thread.join()
    assert footprint.leftover() == ""


def test_thread_that_ends_shortly_is_no_leftover() -> None:
    footprint = ProcessFootprint()
    threading.Thread(target=time.sleep, args=(0.1,)).start()
    assert footprint.leftover() == ""


def test_thread_that_python_did_not_start_is_no_leftover() -> None:
    footprint, ended = ProcessFootprint(), threading.Event()

    def register() -> None:
        threading.current_thread()  # makes the object of a thread that Python does not know
        ended.wait()

    _thread.start_new_thread(register, ())
    time.sleep(0.1)
    assert footprint.leftover() == ""
    ended.set()


def test_child_process_is_a_leftover() -> None:
    footprint = ProcessFootprint()
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    try:
        assert footprint.leftover() == "it left 1 process"
    finally:
        process.kill()
        process.join()
    assert footprint.leftover() == ""


def test_memory_that_grows_is_a_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_MAX_GROWTH", 100 << 20)
    footprint = ProcessFootprint()
    assert footprint.leftover() == ""
    hoard = bytearray(os.urandom(1 << 20) * 200)
    assert footprint.leftover().startswith("its memory grew by 0.2 GiB")
    del hoard


@pytest.mark.parametrize(
    ("error", "poisons"),
    [
        (ValueError("CUDA is not a colour"), False),
        (FloatingPointError("loss nan"), False),
        (RuntimeError("shapes differ"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (caused(ValueError("a batch is at fault"), RuntimeError("CUDA error")), True),
    ],
)
def test_errors_of_device_and_memory_poison_the_process(error: Exception, poisons: bool) -> None:
    assert poisons_process(error) is poisons
