"""The exit codes of a command that runs the file of a job, and the one line that it prints."""

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.document import Override
from orchestrator.console.progress import Progress
from orchestrator.drivers.launch import launch
from orchestrator.errors import InputError, UnreachableError
from orchestrator.interrupt import Interrupt
from tests.support.command_line import refused
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("restored_signals")


class FakeDriver:
    """Runs a function in place of a job."""

    trainable_package = "some_trainable"

    def __init__(self, run: Callable[[], int]) -> None:
        self._run = run
        self.options: dict[str, Any] = {}

    def run(self, **options: Any) -> int:
        self.options = options
        return self._run()


def start(run: Callable[[], int], **options: Any) -> tuple[int, FakeDriver, list[Override]]:
    """Launch a job; return the exit code, its driver, and the overrides that it got."""
    defaults = {"file": "a.yaml", "set": [], "storage": None, "submit": None, "address": None, "wait": 0.0}
    parsed = argparse.Namespace(**{**defaults, "dry_run": False, "fresh": False, "prog": "prog", **options})
    driver, received = FakeDriver(run), list[Override]()

    def make_driver(overrides: list[Override], progress: Progress, interrupt: Interrupt) -> Any:
        received.extend(overrides)
        return driver

    return launch("sweep", parsed, make_driver, []), driver, received


def refuse() -> int:
    raise InputError("a.yaml:3: budget.trails: not a valid key")


def press_ctrl_c() -> int:
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("it was not interrupted")


@pytest.mark.parametrize("code", [0, 1, 4, 130])
def test_launch_returns_the_code_of_the_driver(code: int) -> None:
    assert start(lambda: code)[0] == code


def test_launch_with_bad_input_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(refuse)[0] == 2
    assert capsys.readouterr().err == "error: a.yaml:3: budget.trails: not a valid key\n"


def test_launch_in_a_folder_that_was_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert start(lambda: 0)[0] == 2
    line = "error: the working directory: No such file or directory; change to another one\n"
    assert capsys.readouterr().err == line


def away() -> int:
    raise UnreachableError("a.yaml:9: tracking.uri: the MLflow server at http://a does not answer")


def test_launch_without_docstrings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    line = refused("sweep", ROOT / "search_spaces/alignment.yaml")
    assert line == "error: PYTHONOPTIMIZE, python -OO: Ray needs docstrings; use 1 (python -O) or 0"


def test_launch_without_an_answer_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(away)[0] == 3
    line = "error: a.yaml:9: tracking.uri: the MLflow server at http://a does not answer\n"
    assert capsys.readouterr().err == line


def test_launch_waits_for_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.drivers.waiting._WAIT_SECONDS", 0.1)
    answers = [away, away, lambda: 0]
    assert start(lambda: answers.pop(0)(), wait=60.0)[0] == 0
    out, err = capsys.readouterr()
    assert out.count("the MLflow server at http://a does not answer") == 1 and err == ""


def test_launch_waits_no_longer_than_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.drivers.waiting._WAIT_SECONDS", 0.1)
    assert start(away, wait=0.3)[0] == 3
    assert capsys.readouterr().err.startswith("error: a.yaml:9: tracking.uri: the MLflow server")


def test_launch_that_is_interrupted_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(press_ctrl_c)[0] == 130
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted; rerun the command to resume the sweep"


def test_launch_whose_dry_run_is_interrupted_promises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(press_ctrl_c, dry_run=True)[0] == 130
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted"


def test_launch_hands_its_options_to_the_driver() -> None:
    options = {"address": "a:1", "dry_run": True, "fresh": True}
    assert start(lambda: 0, **options)[1].options == options


def test_launch_makes_overrides_of_set_and_storage() -> None:
    overrides = start(lambda: 0, set=["budget.trials=3"], storage="/store")[2]
    assert [(override.path, override.value) for override in overrides] == [
        ("budget.trials", 3),
        ("storage", "/store"),
    ]


def test_launch_with_submit_and_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(lambda: 0, submit="http://a", address="b:1")[0] == 2
    assert capsys.readouterr().err.startswith("error: --submit, --address: give one; ")
