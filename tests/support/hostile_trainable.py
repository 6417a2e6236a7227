"""A trainable that does what a trainable must not do, as its config asks for."""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

REPORTS: dict[str, Any] = {
    "huge": {"epoch": 2, "score": 10**400},
    "missing value": {"epoch": 2, "score": None},
    "text": {"epoch": 2, "score": "0.5"},
    "list": {"epoch": 2, "score": [0.5]},
    "no mapping": [2, 0.5],
    "no epoch": {"score": 0.5},
    "epoch again": {"epoch": 1, "score": 0.5},
    "epoch too late": {"epoch": 9, "score": 0.5},
    "half an epoch": {"epoch": 1.5, "score": 0.5},
    "symbols in a name": {"epoch": 2, "score": 0.5, "acc (%)": 1.0},
    "NUL in a name": {"epoch": 2, "score": 0.5, "a\0b": 1.0},
    "surrogate in a name": {"epoch": 2, "score": 0.5, "\udc80": 1.0},
    "path as a name": {"epoch": 2, "score": 0.5, "../up": 1.0},
    "long name": {"epoch": 2, "score": 0.5, "n" * 300: 1.0},
    "number as a name": {"epoch": 2, "score": 0.5, 3: 1.0},
    "not finite": {"epoch": 2, "score": float("nan")},
    "objective missing": {"epoch": 2, "other": 1.0},
}
"""Reports of the second epoch, by what is wrong with them."""


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnpicklableError(Exception):
    """It cannot be sent to another process."""

    def __init__(self) -> None:
        super().__init__("not to be sent")
        self.lock = threading.Lock()


class HostileConfig(BaseModel):
    """What to do after the first epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    epochs: int = 2
    act: str = "nothing"
    level: Literal[0, 1] = 0


def _raise(error: BaseException) -> None:
    raise error


def _print_much() -> None:
    for _ in range(1000):
        print("x" * 10_000)


def _fork() -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)


def _remove_working_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


ACTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "NUL in a message": lambda: _raise(ValueError("a\0b")),
    "surrogate in a message": lambda: _raise(ValueError("a\udc80b")),
    "high surrogate in a message": lambda: _raise(ValueError("\x1b[31m\0\ud800 bad\nnewline")),
    "high surrogate in the output": lambda: print("\ud800"),
    "message of a megabyte": lambda: _raise(ValueError("long " * 200_000)),
    "message without a line": lambda: _raise(ValueError("\n\n")),
    "unprintable error": lambda: _raise(UnprintableError()),
    "unpicklable error": lambda: _raise(UnpicklableError()),
    "group of errors": lambda: _raise(BaseExceptionGroup("two", [ValueError("one"), KeyError("other")])),
    "exit": lambda: sys.exit(0),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "generator exit": lambda: _raise(GeneratorExit()),
    "thread": lambda: threading.Thread(target=time.sleep, args=(3600,), daemon=True).start(),
    "lasting thread": lambda: threading.Thread(target=time.sleep, args=(600,), name="lasting").start(),
    "fork": _fork,
    "much output": _print_much,
    "closed output": lambda: sys.stdout.close(),
    "alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 20) and None,
    "timeout of sockets": lambda: socket.setdefaulttimeout(0.001),
    "no working folder": _remove_working_folder,
    "no log": lambda: logging.disable(),
    "ignored signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN) and None,
}
"""Acts after the first epoch, by name."""


class HostileTrainable:
    """Reports one good epoch, and then acts, or reports as `REPORTS` says."""

    Config = HostileConfig
    InputError = ValueError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"score": "max"}
    throughput: str | None = None

    def prepare(self, config: HostileConfig) -> list[Any]:
        """Return no data sets."""
        return []

    def check(self, config: HostileConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Accept every config."""

    def fit(self, config: HostileConfig, context: Any) -> None:
        """Report two epochs; the second as the config asks for."""

        def save(folder: Path) -> None:
            (folder / "state").write_text("")

        context.restore()
        many = {f"metric {number}": number for number in range(1000)} if config.act == "many metrics" else {}
        context.report({"epoch": 1, "score": 0.25, **many}, save)
        ACTS.get(config.act, lambda: None)()
        context.report(REPORTS.get(config.act, {"epoch": 2, "score": 0.5}), save)

    def evaluate(self, config: HostileConfig, checkpoint: Path) -> dict[str, float]:
        """Return one score."""
        return {"test/score": 0.5}

    def export(self, config: HostileConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Export nothing."""
        raise NotImplementedError
