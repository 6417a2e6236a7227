"""The errors of the command line are one line each."""

import argparse

import pytest

from orchestrator.console.arguments import Parser, existing_job_parser, job_file_parser, seconds


@pytest.mark.parametrize(("text", "value"), [("5", 5.0), ("0.5", 0.5), ("1e3", 1000.0)])
def test_seconds_are_a_positive_number(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf"])
def test_seconds_that_are_not_positive_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
        seconds(text)
    assert str(refusal.value) == f"{text!r} is not a number of seconds above 0"


def refusal(parser: Parser, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


def test_job_file_parser_without_a_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    parser = job_file_parser("sweep", "python -m orchestrator.sweep", "Run.", "examples")
    line = "error: the following arguments are required: file; see --help\n"
    assert refusal(parser, capsys) == line


def test_job_parser_with_an_unknown_option_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    parser = existing_job_parser("python -m orchestrator.status", "Show.", "examples")
    line = "error: unrecognized arguments: --jsn; see --help\n"
    assert refusal(parser, capsys, "parabola", "--jsn") == line


def test_job_file_parser_collects_overrides() -> None:
    parser = job_file_parser("sweep", "python -m orchestrator.sweep", "Run.", "examples")
    parsed = parser.parse_args(["a.yaml", "--set", "a=1", "--set", "b=2"])
    assert (parsed.file, parsed.set) == ("a.yaml", ["a=1", "b=2"])
