"""Tables of the terminal, and the one way in which numbers and durations are written."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.table import Table
from rich.text import Text


def format_number(value: Any) -> str:
    """Return a float with four significant digits, any other value as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_values(values: Mapping[str, Any]) -> str:
    """Return values by name in one line."""
    return ", ".join(f"{name}={format_number(value)}" for name, value in values.items())


def format_duration(seconds: float) -> str:
    """Return seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


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
