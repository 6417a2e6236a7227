"""How a driver tells what the machine and the database of its study refuse."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from orchestrator.console.progress import Progress
from orchestrator.drivers.sweep import SweepDriver
from orchestrator.errors import InputError, SweepError, TrackingError, UnreachableError
from orchestrator.interrupt import Interrupt
from tests.support.sweep_files import load_sweep


@pytest.fixture
def driver(tmp_path: Path) -> SweepDriver:
    return SweepDriver(load_sweep(tmp_path), Progress(), Interrupt())


def test_file_that_cannot_be_written_is_named(driver: SweepDriver, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=rf"^{tmp_path}: Is a directory$"), driver._explained_errors():
        tmp_path.write_text("a report")


def test_full_disk_is_told(driver: SweepDriver) -> None:
    with pytest.raises(SweepError, match=r"^no space is left: "), driver._explained_errors():
        Path("/dev/full").write_text("a report")


def test_trial_that_its_study_has_lost_is_told(driver: SweepDriver) -> None:
    with pytest.raises(SweepError, match=r"a recorded trial is gone"), driver._explained_errors():
        raise KeyError("Record does not exist.")


def test_job_within_another_waits_for_servers(
    driver: SweepDriver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [
        UnreachableError("tracking.uri: connection refused"),
        TrackingError("registry: no answer in time", unreachable=True),
        TrackingError("registry: permission denied"),
    ]

    def run(*_: Any) -> NoReturn:
        raise answers.pop(0)

    monkeypatch.setattr("orchestrator.drivers.waiting._WAIT_SECONDS", 0.1)
    monkeypatch.setattr(driver, "_run", run)
    cluster: Any = None
    with pytest.raises(TrackingError, match=r"^registry: permission denied$"):
        driver.run_within(cluster, "sweep")
    assert caplog.messages == ["tracking.uri: connection refused", "registry: no answer in time"]


@pytest.mark.parametrize("error", [KeyError("x"), OSError("no file is named")])
def test_error_of_the_program_is_raised_as_it_is(driver: SweepDriver, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, driver._explained_errors():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError("no"), SystemExit("no")])
def test_what_a_trainable_raises_is_one_line_with_its_place(
    driver: SweepDriver, error: BaseException
) -> None:
    line = (
        rf"^trainable: tests.*Trainable raised {type(error).__name__}: '?no'? \(test_base.py, line \d+\);"
        " correct it, and rerun the command$"
    )
    with pytest.raises(InputError, match=line), driver.explained_data():
        raise error
