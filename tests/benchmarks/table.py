"""Measurements against a peer in the same run, and the rows of the table that they fill."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; the columns are texts with units."""

    what: str
    ours: str
    peer: str = "-"
    """Name of the peer and its figure, measured in the same run."""

    ratio: str = "-"
    aim: str = "stated"
    raw: str = ""
    """Every repetition, for the record."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of alternating repetitions of this project and of a peer."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of our seconds divided by that of the peer's; below 1 this project is faster."""
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def raw(self) -> str:
        """Both lists of seconds, as text."""
        return f"ours {seconds_list(self.ours)}; peer {seconds_list(self.peer)}"


def alternate(
    ours: Callable[[], object],
    peer: Callable[[], object],
    repetitions: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time two functions in turns, after one warm-up of each."""
    ours()
    peer()
    pairs = [(seconds(ours, clock), seconds(peer, clock)) for _ in range(repetitions)]
    return Comparison(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time of a call: the wall time, or that of another ``clock``."""
    begin = clock()
    function()
    return clock() - begin


def seconds_list(values: Sequence[float]) -> str:
    """Return seconds as text, with three significant digits."""
    return " ".join(f"{value:.3g}" for value in values) + " s"
