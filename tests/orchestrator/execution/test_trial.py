"""The attempts of one trial, without Ray running."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from orchestrator.errors import TrialError
from orchestrator.execution import trial
from orchestrator.execution.failures import WorkersLostError
from orchestrator.execution.worker import TrialSpec
from orchestrator.study.trial_report import TrialReport

Train = Callable[..., str | None]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train a trial whose attempts raise errors, each with the name of a worker that hung, if any."""

    def train(*attempts: tuple[Exception, str]) -> str | None:
        remaining: Iterator[tuple[Exception, str]] = iter(attempts)

        def attempt(*_: Any) -> str:
            for error, hung in remaining:
                if hung:
                    (folder / f"hung-{hung}.txt").write_text(f"stacks of {hung}")
                raise error
            return "checkpoint"

        folder = tmp_path / "trials" / "trial-0000"
        folder.mkdir(parents=True)
        monkeypatch.setattr(trial, "_attempt", attempt)
        spec = TrialSpec("job", "module:Class", str(tmp_path / "trials"), None, 1, 1.0, 0.0, 60.0, False)
        return trial._train({"number": 0}, spec)

    def ignore(report: TrialReport) -> None:
        """Stands for the report to Ray Tune."""

    monkeypatch.setattr(trial, "_WAITS", wait_none())
    monkeypatch.setattr(trial, "_report", ignore)
    return train


def lost(*, unlimited: bool = False) -> WorkersLostError:
    return WorkersLostError("its worker died", "log", unlimited=unlimited)


def test_trial_that_loses_its_workers_resumes(train: Train) -> None:
    assert train((lost(), ""), (lost(), "")) == "checkpoint"


def test_trial_that_hangs_twice_fails_with_the_stacks(train: Train) -> None:
    with pytest.raises(TrialError) as failure:
        train((lost(), "a"), (lost(), "b"))
    assert str(failure.value) == "it hung 2 times: no report for 60 s"
    assert failure.value.log == "stacks of b"


def test_hang_while_the_storage_fails_counts(train: Train) -> None:
    with pytest.raises(TrialError, match="it hung 2 times"):
        train((lost(unlimited=True), "a"), (lost(), ""), (lost(), "b"))


def test_trial_that_failed_is_not_tried_again(train: Train) -> None:
    with pytest.raises(TrialError, match="no"):
        train((TrialError("no", "log"), ""))
