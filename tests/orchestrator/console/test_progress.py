"""What a command shows while it works, on output that is not a terminal."""

import io
import logging
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from orchestrator.console import progress as module
from orchestrator.console.progress import Progress

PACKAGE = "orchestrator"


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(output: io.StringIO) -> Progress:
    return Progress(Console(file=output, force_terminal=False))


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (PACKAGE, "some_trainable")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def test_line_is_printed_without_markup_or_wrapping(progress: Progress, output: io.StringIO) -> None:
    line = "[bold]" + "x" * 300
    progress.print(line)
    assert output.getvalue() == f"{line}\n"


def test_line_repeated_in_a_block_is_printed_once(progress: Progress, output: io.StringIO) -> None:
    with progress.without_repeats():
        for line in ("a", "b", "a"):
            progress.print(line)
    progress.print("a")
    assert output.getvalue() == "a\nb\na\n"


@pytest.mark.parametrize(("level", "shown"), [(logging.DEBUG, ""), (logging.INFO, "a line\n")])
def test_logging_shows_records_from_info_on(
    progress: Progress, output: io.StringIO, level: int, shown: str
) -> None:
    with progress.logging():
        logging.getLogger(f"{PACKAGE}.some.module").log(level, "a %s", "line")
    assert output.getvalue() == shown


def test_logging_shows_added_loggers(progress: Progress, output: io.StringIO) -> None:
    with progress.logging() as handler:
        handler.add("some_trainable")
        logging.getLogger("some_trainable.data").info("the data is ready")
    assert output.getvalue() == "the data is ready\n"


def test_logging_after_its_block_shows_nothing(progress: Progress, output: io.StringIO) -> None:
    with progress.logging() as handler:
        handler.add("some_trainable")
    for name in (PACKAGE, "some_trainable"):
        logging.getLogger(name).error("late")
    assert output.getvalue() == ""


def test_logging_keeps_the_level_of_the_user(progress: Progress, output: io.StringIO) -> None:
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    with progress.logging():
        logging.getLogger(PACKAGE).warning("a warning")
    assert output.getvalue() == ""
    assert logging.getLogger(PACKAGE).level == logging.ERROR


def test_activity_is_printed_once_at_its_start(progress: Progress, output: io.StringIO) -> None:
    with progress.activity("checking the data"):
        pass
    assert output.getvalue() == "checking the data\n"


def test_activity_that_lasts_is_repeated(
    progress: Progress, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPEAT_SECONDS", 0.5)
    with progress.activity(lambda: "2 of 6 trials"):
        deadline = time.monotonic() + 20
        while not output.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert set(output.getvalue().splitlines()) == {"2 of 6 trials"}


def test_status_is_repeated_among_many_lines(
    progress: Progress, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short trials end several times a second, so that no time is without a line."""
    monkeypatch.setattr(module, "_STATUS_SECONDS", 0.5)
    with progress.activity(lambda: "3 of 9 trials"):
        for number in range(25):
            progress.print(f"trial {number} ended")
            time.sleep(0.1)
    assert "3 of 9 trials" in output.getvalue().splitlines()


@pytest.mark.parametrize(("age", "seconds"), [(0, 5), (50, 5), (300, 30), (600, 60), (90_000, 60)])
def test_activity_of_a_long_job_is_repeated_less_often(age: float, seconds: float) -> None:
    assert module.pause(5, age) == seconds
