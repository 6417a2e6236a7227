"""Isolation of trials that run in the same process one after the other."""

import contextlib
import gc
import locale
import logging
import operator
import os
import random
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil

_MAX_GROWTH = 2 << 30
"""Bytes of private memory that a process may gain from its first trial on."""

_MAX_DEVICE_GROWTH = 256 << 20
"""Bytes of device memory that a trial may leave allocated."""

_GRACE_SECONDS = 2.0
"""Time for the threads of a trial to end after it."""

_HELPERS = ("resource_tracker", "semaphore_tracker", "forkserver", "compile_worker")
"""Child processes of libraries, which live as long as the process and hold nothing of a trial."""

_PRECISIONS = (
    "",
    "cuda.matmul",
    "cudnn",
    "cudnn.conv",
    "cudnn.rnn",
    "mkldnn",
    "mkldnn.conv",
    "mkldnn.matmul",
    "mkldnn.rnn",
)
"""The parts of ``torch.backends`` that have a precision, itself first."""

_SWITCHES = {
    "cuda.matmul": ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"),
    "cudnn": ("enabled", "benchmark", "deterministic", "benchmark_limit"),
    "mkldnn": ("enabled",),
}
"""Switches of ``torch.backends``."""


@contextlib.contextmanager
def isolated(seed: Sequence[int]) -> Iterator[None]:
    """Seed the global generators, and restore the settings of the process after the block.

    Restored are the environment, the working directory, the import path, the locale, the filters of
    ``warnings``, limits, masks and timers of the process, and the settings of NumPy and PyTorch that change
    results or speed.

    Args:
        seed: integers of at least 0 that together are the seed.
    """
    import torch

    environment, path, folder = dict(os.environ), list(sys.path), os.getcwd()
    words, level = locale.setlocale(locale.LC_ALL), logging.root.manager.disable
    errors = np.geterr()
    settings, process = _torch_settings(), _process_settings()
    seeds = np.random.SeedSequence(seed).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for variable in os.environ.keys() - environment.keys():
                del os.environ[variable]
            os.environ.update(environment)
            sys.path[:] = path
            _restore_process(process)
            with contextlib.suppress(FileNotFoundError):  # the trial has removed it
                os.chdir(folder)
            locale.setlocale(locale.LC_ALL, words)
            logging.disable(level)
            np.seterr(**errors)
            _restore_torch(settings)


def _process_settings() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "umask": umask,
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cores": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "recursion": sys.getrecursionlimit(),
        "timeout": socket.getdefaulttimeout(),
        "garbage": gc.isenabled(),
    }


def _restore_process(settings: dict[str, Any]) -> None:
    signal.setitimer(signal.ITIMER_REAL, *settings["timer"])  # an alarm would end the next trial's process
    os.umask(settings["umask"])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    soft = settings["files"] if unlimited else min(settings["files"], hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if settings["cores"] is not None:
        os.sched_setaffinity(0, settings["cores"])
    sys.setrecursionlimit(settings["recursion"])
    socket.setdefaulttimeout(settings["timeout"])
    (gc.enable if settings["garbage"] else gc.disable)()


def _torch_settings() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precisions": {name: _backend(name).fp32_precision for name in _PRECISIONS},
        "switches": {
            (name, switch): getattr(_backend(name), switch)
            for name, switches in _SWITCHES.items()
            for switch in switches
        },
        "deterministic": _deterministic(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        },
    }


def _restore_torch(settings: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    if torch.get_default_device() != settings["device"]:
        torch.set_default_device(None if settings["device"].type == "cpu" else settings["device"])
    for name, precision in settings["precisions"].items():
        if _backend(name).fp32_precision != precision:
            _backend(name).fp32_precision = precision
    for (name, switch), value in settings["switches"].items():
        if getattr(_backend(name), switch) != value:
            setattr(_backend(name), switch, value)
    if _deterministic() != settings["deterministic"]:  # the call imports the compiler, which takes seconds
        enabled, warn_only = settings["deterministic"]
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.set_grad_enabled(settings["grad"])
    torch.autograd.set_detect_anomaly(settings["anomaly"])
    for kind, (enabled, dtype) in settings["autocast"].items():
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.clear_autocast_cache()
    torch.set_flush_denormal(False)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _deterministic() -> tuple[bool, bool]:
    """Return whether PyTorch's algorithms have to be deterministic, and whether others only warn."""
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _backend(name: str) -> Any:
    import torch

    return operator.attrgetter(name)(torch.backends) if name else torch.backends


class ProcessFootprint:
    """What a process holds before its first trial: threads, child processes and memory."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._threads = set(threading.enumerate())
        self._children = self._child_processes()
        self._memory: int | None = None
        # What is loaded now stays: without it, the garbage of a trial is found in milliseconds.
        gc.collect()
        gc.freeze()
        self._device_memory = _device_memory()
        self._grouped = _has_process_group()

    def leftover(self) -> str:
        """Return what the trials so far left behind, so that another one would not be alone; else empty."""
        gc.collect()
        new = [
            thread
            for thread in threading.enumerate()
            if thread not in self._threads and not _belongs_to_library(thread)
        ]
        for thread in new:
            thread.join(_GRACE_SECONDS / len(new))
        names = [thread.name for thread in new if thread.is_alive()]
        if names:
            return f"it left {len(names)} thread{'s' * (len(names) > 1)} ({', '.join(sorted(names)[:3])})"
        if children := self._child_processes() - self._children:
            return f"it left {len(children)} process{'es' * (len(children) > 1)}"
        if self._grouped != _has_process_group():
            return "it changed the process group of torch.distributed"
        if (held := _device_memory() - self._device_memory) > _MAX_DEVICE_GROWTH:
            return f"it left {held / 2**20:.0f} MiB of device memory allocated"
        memory = self._process.memory_info()
        private = memory.rss - getattr(memory, "shared", 0)
        if self._memory is None:  # the first trial has loaded libraries and data, which stay
            self._memory = private
            gc.freeze()
        if private - self._memory > _MAX_GROWTH:
            return f"its memory grew by {(private - self._memory) / 2**30:.1f} GiB"
        return ""

    def _child_processes(self) -> set[psutil.Process]:
        children = set()
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                direct = child.ppid() == self._process.pid
                if not (direct and any(helper in " ".join(child.cmdline()) for helper in _HELPERS)):
                    children.add(child)
        return children


def _belongs_to_library(thread: threading.Thread) -> bool:
    """Return whether a thread is one of tqdm, or was not started by Python: these hold nothing of a trial."""
    return type(thread).__module__.startswith("tqdm") or isinstance(thread, threading._DummyThread)


def poisons_process(error: BaseException) -> bool:
    """Return whether the process that raised an error may be unable to train correctly.

    An exception of the trial's own code leaves the process as it was. An error of the device or of the memory
    may not.
    """
    cause = error.__cause__ or error.__context__
    if cause is not None and poisons_process(cause):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "SystemError", "OutOfMemoryError", "AcceleratorError"}:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA", "NCCL", "cuDNN"))


def _device_memory() -> int:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _has_process_group() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
