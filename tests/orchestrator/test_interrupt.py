"""What Ctrl-C, SIGTERM, SIGHUP and a request of another thread do to a process."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.interrupt import Interrupt
from tests.support.command_line import enable_signals

START = """
import signal, sys, threading, time
from orchestrator.interrupt import Interrupt
interrupt = Interrupt()
interrupt.install()
"""

SLEEP = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted:", interrupt.reason, flush=True)
    sys.exit(130)
"""

CLEAN_UP = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("cleaning up", flush=True)
    time.sleep(60)
"""

POLL = """
with interrupt.polled():
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
print("polled:", interrupt.reason, flush=True)
"""

REQUEST = """
answers = []
def request():
    time.sleep(0.5)
    answers.append(interrupt.request("the lease is lost"))
    answers.append(interrupt.request("another reason"))
thread = threading.Thread(target=request)
thread.start()
"""

ANSWERS = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    thread.join()
    print(answers)
"""


def ignoring(*numbers: signal.Signals) -> Any:
    """Return a ``preexec_fn`` that ignores just these signals, as ``nohup`` and the ``&`` of a script do."""

    def ignore() -> None:
        enable_signals()
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return ignore


@contextmanager
def started(code: str, *, ignored: tuple[signal.Signals, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run code until it says that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignoring(*ignored),
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_raises_keyboard_interrupt_once(number: signal.Signals) -> None:
    with started(SLEEP) as process:
        process.send_signal(number)
        assert finish(process) == (130, f"interrupted: {number.name}\n", "")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with started(CLEAN_UP) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.readline() == "cleaning up\n"
        process.send_signal(second)
        assert finish(process) == (130, "", "stopped at once; rerun the command to resume\n")


def test_signal_after_a_request_ends_the_process_at_once() -> None:
    with started(REQUEST + CLEAN_UP) as process:
        assert process.stdout is not None and process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 130
    assert err == "the lease is lost\nstopped at once; rerun the command to resume\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    with started(SLEEP, ignored=(number,)) as process:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)


def test_installing_twice_keeps_an_ignored_signal_ignored() -> None:
    with started("interrupt.install()\n" + SLEEP, ignored=(signal.SIGINT,)) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)


CLOSED_TERMINAL = """
import pathlib
from orchestrator.console.progress import Progress
progress = Progress()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    with progress.activity("delivering"):
        progress.print("interrupted")
    print("done", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text(interrupt.reason)
"""


def test_closed_terminal_interrupts_a_process_that_prints(tmp_path: Path) -> None:
    terminal, stream = os.openpty()

    def take_terminal() -> None:
        enable_signals()
        os.setsid()
        fcntl.ioctl(stream, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", START + CLOSED_TERMINAL, str(tmp_path / "reason")]
    with subprocess.Popen(
        command, stdin=stream, stdout=stream, stderr=stream, preexec_fn=take_terminal, pass_fds=[stream]
    ) as process:
        os.close(stream)
        assert os.read(terminal, 100).strip() == b"ready"
        os.close(terminal)
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "reason").read_text() == "SIGHUP"


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_sigterm_ends_a_process_that_ignores_others(ignored: signal.Signals) -> None:
    with started(SLEEP, ignored=(ignored,)) as process:
        process.send_signal(signal.SIGTERM)
        assert finish(process) == (130, "interrupted: SIGTERM\n", "")


def test_second_sigint_when_ignored_does_not_end_the_process() -> None:
    with started(CLEAN_UP, ignored=(signal.SIGINT,)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None and process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)


@pytest.mark.parametrize("ignored", [(), (signal.SIGINT, signal.SIGHUP)])
def test_request_wakes_a_main_thread_that_sleeps(ignored: tuple[signal.Signals, ...]) -> None:
    with started(REQUEST + SLEEP, ignored=ignored) as process:
        assert finish(process) == (130, "interrupted: the lease is lost\n", "the lease is lost\n")


def test_request_while_the_process_ends_is_refused() -> None:
    with started(REQUEST + ANSWERS) as process:
        assert finish(process) == (0, "[True, False]\n", "the lease is lost\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_polled_block_sees_a_signal_and_raises_nothing(number: signal.Signals) -> None:
    with started(POLL) as process:
        process.send_signal(number)
        assert finish(process) == (0, f"polled: {number.name}\n", "")


def test_polled_block_sees_a_request_and_raises_nothing() -> None:
    with started(REQUEST + POLL) as process:
        assert finish(process) == (0, "polled: the lease is lost\n", "the lease is lost\n")


def test_polled_block_at_a_second_signal_ends_at_once() -> None:
    code = "with interrupt.polled():\n    print('ready', flush=True)\n"
    code += "    while not interrupt.requested:\n        time.sleep(0.01)\n"
    code += "    print('ending', flush=True)\n    time.sleep(60)\n"
    with started(code) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGINT)
        assert finish(process)[0] == 130


def test_interrupt_after_a_polled_block_raises_again() -> None:
    with started("with interrupt.polled():\n    pass\n" + SLEEP) as process:
        process.send_signal(signal.SIGINT)
        assert finish(process) == (130, "interrupted: SIGINT\n", "")


def test_interrupt_that_was_not_requested_has_no_reason() -> None:
    interrupt = Interrupt()
    assert not interrupt.requested
    assert interrupt.reason == ""


def test_request_without_handlers_only_sets_the_reason() -> None:
    interrupt = Interrupt()
    assert interrupt.request("the lease is lost")
    assert interrupt.reason == "the lease is lost"
