"""Tables of the terminal, and the one way in which numbers and durations are written."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table
from rich.text import Text


def format_number(value: Any) -> str:
    """Return a float with four significant digits, any other value as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_estimate(value: Any, error: float | None) -> str:
    """Return a number with its standard error, where it has one: ``0.8123 ± 0.031``."""
    return format_number(value) + ("" if error is None else f" ± {error:.2g}")


def format_values(values: Mapping[str, Any]) -> str:
    """Return values by name in one line."""
    return ", ".join(f"{name}={format_number(value)}" for name, value in values.items())


def objective_texts(trial: Mapping[str, Any]) -> dict[str, str]:
    """Return the objectives of a described trial with their standard errors, by metric."""
    errors = trial.get("errors", {})
    return {
        key: format_estimate(value, errors.get(key))
        for key, value in trial.items()
        if key not in ("trial", "errors", "parameters")
    }


def pareto_table(trials: Sequence[Mapping[str, Any]], size: int) -> Table:
    """Return a table of the first of ``size`` described trials of a Pareto set."""
    shown = "" if len(trials) == size else f", the first {len(trials)} of {size}"
    table = Table(title=Text(f"Pareto set{shown}", "bold"), title_justify="left", box=None, padding=(0, 2))
    for column in ("trial", *objective_texts(trials[0]), "parameters"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        table.add_row(trial["trial"], *objective_texts(trial).values(), format_values(trial["parameters"]))
    return table


def format_count(number: int, noun: str) -> str:
    """Return a number of things: ``1 epoch``, ``2 epochs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


def format_megabytes(size: int) -> str:
    """Return bytes as megabytes."""
    return f"{size / 1e6:,.1f} MB"


def pairs(title: str, rows: Mapping[str, str]) -> Table:
    """Return a table of names and values."""
    table = Table(
        title=Text(title, "bold"), title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table
