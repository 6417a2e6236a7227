"""How numbers and durations are written."""

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.console.tables import format_duration, format_number, format_values, pairs


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1e-7, "1e-07"),
        (123456.0, "1.235e+05"),
        (2.0, "2"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (123456, "123456"),
        (True, "True"),
        ("gru", "gru"),
        (None, "None"),
    ],
)
def test_number_has_four_significant_digits(value: Any, text: str) -> None:
    assert format_number(value) == text


def test_values_are_one_line() -> None:
    assert format_values({"x": 0.123456, "cell": "gru"}) == "x=0.1235, cell=gru"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3600, "1:00:00"), (90000, "1 day, 1:00:00")]
)
def test_duration_is_rounded_to_seconds(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_pairs_show_markup_literally() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(pairs("Title", {"[bold]": "[red]x[/red]"}))
    assert "[bold]" in console.file.getvalue() and "[red]x[/red]" in console.file.getvalue()  # type: ignore[attr-defined]
