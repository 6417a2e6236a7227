"""Charts of a study, drawn from its trials; most of them show one objective."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from orchestrator.console.tables import format_number
from orchestrator.report.style import (
    BEST,
    BLUE,
    INK,
    MUTED,
    SETTINGS,
    SHADES,
    STATE_COLOURS,
    Picture,
    figure_uri,
)
from orchestrator.study.selection import Mode, best_trial, best_trials, is_feasible, own_trials

_PARAMETERS = 6
"""Parameters in a chart, the most important first."""

_SLICES = 4
"""Parameters among the slices."""

_VECTOR_POINTS = 5000
"""Most marks that a chart draws as vectors; more take less space as pixels."""

_ABSENT = -0.14
"""Position of trials without a parameter, below its axis, which ranges from 0 to 1."""

_LABEL = 14
"""Characters of a choice in a chart."""

_NARROW, _WIDE = 6.4, 13.0
"""Widths of charts in inches: half of the page, and all of it."""


def draw_charts(study: optuna.Study, metric: str) -> list[Picture]:
    """Return the charts that the trials of a study with one objective can fill."""
    search = _Search(study, metric)
    pictures = []
    with matplotlib.rc_context(SETTINGS):
        if search.complete:
            pictures.append(_draw_history(search))
        if any(_curve(trial) for trial in search.trials):
            pictures.append(_draw_curves(search))
            pictures.append(_draw_cost(search))
        importances = search.importances
        if importances:
            pictures.append(_draw_importances(importances))
        names = (list(importances) or search.varied)[:_PARAMETERS]
        if names:
            parameters = [_Dimension.of_parameter(name, search.complete) for name in names]
            pictures.append(_draw_parallel_coordinates(search, parameters))
            pictures.append(_draw_slices(search, parameters[:_SLICES]))
    return pictures


def draw_pareto_set(study: optuna.Study, metrics: Sequence[str]) -> list[Picture]:
    """Return a chart of the first of several objectives against each other one; none without complete trials.

    Args:
        study: a study with several objectives.
        metrics: the objectives, in the order of the study.
    """
    modes: list[Mode] = [
        "max" if each is optuna.study.StudyDirection.MAXIMIZE else "min" for each in study.directions
    ]
    complete = [
        trial
        for trial in own_trials(study.get_trials(deepcopy=False))
        if trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    ]
    members = best_trials(complete, *modes)
    with matplotlib.rc_context(SETTINGS):
        return [
            _draw_objectives(complete, members, (other, 0), metrics)
            for other in range(1, len(metrics))
            if members
        ]


class _Search:
    """The trials of a study as the charts need them."""

    def __init__(self, study: optuna.Study, metric: str) -> None:
        self.study, self.metric = study, metric
        self.trials = own_trials(study.get_trials(deepcopy=False))
        self.complete = [
            trial
            for trial in self.trials
            if trial.state is TrialState.COMPLETE and math.isfinite(trial.value or 0.0)
        ]
        self.maximise = study.direction is optuna.study.StudyDirection.MAXIMIZE
        self.goodness = self.values if self.maximise else -self.values
        """Value of every complete trial, with the sign that makes larger better."""

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """Value of every complete trial."""
        return np.array([trial.value for trial in self.complete], np.float64)

    @cached_property
    def best(self) -> int | None:
        """Number of the best trial, which satisfies the constraints."""
        best = best_trial(self.complete, "max" if self.maximise else "min")
        return None if best is None else best.number

    @cached_property
    def varied(self) -> list[str]:
        """Parameters of which complete trials have several values, by name."""
        values: dict[str, set[Any]] = {}
        for trial in self.complete:
            for name, value in trial.params.items():
                values.setdefault(name, set()).add(value)
        return sorted(name for name, choices in values.items() if len(choices) > 1)

    @cached_property
    def importances(self) -> dict[str, float]:
        """Share of each parameter in the spread of the objective, largest first; empty for too few trials."""
        if len(self.complete) < 4 or len(set(self.values)) < 2 or not self.varied:
            return {}
        return get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator(), params=self.varied)


@dataclass(frozen=True, slots=True, eq=False)
class _Dimension:
    """A parameter or the objective: the position of every complete trial on one axis."""

    label: str
    positions: NDArray[np.float64]
    """Values of a number, indices of choices; NaN where a trial does not have the parameter."""
    choices: tuple[str, ...] = ()
    """Of a categorical parameter."""
    log: bool = False
    whole: bool = False
    """Whether only whole numbers are valid."""

    @classmethod
    def of_parameter(cls, name: str, trials: Sequence[FrozenTrial]) -> "_Dimension":
        """Return the dimension of a parameter."""
        label = ".".join(name.split(".")[-2:])
        distributions: list[Any] = [trial.distributions[name] for trial in trials if name in trial.params]
        values = [trial.params.get(name) for trial in trials]
        if isinstance(distributions[0], CategoricalDistribution):
            choices = tuple(
                dict.fromkeys(
                    str(choice) for distribution in distributions for choice in distribution.choices
                )
            )
            rank = {choice: position for position, choice in enumerate(choices)}
            positions = [
                rank[str(value)] if name in trial.params else math.nan
                for trial, value in zip(trials, values, strict=True)
            ]
            return cls(label, np.array(positions, np.float64), choices)
        return cls(
            label,
            np.array([math.nan if value is None else value for value in values], np.float64),
            log=all(distribution.log for distribution in distributions),
            whole=all(isinstance(distribution, IntDistribution) for distribution in distributions),
        )

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest position."""
        if self.choices:
            return 0, len(self.choices) - 1
        return float(np.nanmin(self.positions)), float(np.nanmax(self.positions))

    @property
    def locator(self) -> Locator:
        """Where ticks of a number are."""
        low, high = self.limits
        if self.log:
            return LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=6)
        return MaxNLocator(5, integer=self.whole, steps=(1, 2, 2.5, 5, 10))

    def ticks(self) -> dict[float, str]:
        """Return the text of every position that has a tick."""
        if self.choices:
            return {position: _shortened(choice) for position, choice in enumerate(self.choices)}
        low, high = self.limits
        inside = [tick for tick in self.locator.tick_values(low, high) if low <= tick <= high]
        return {tick: format_number(tick) for tick in map(float, inside if len(inside) > 1 else (low, high))}

    def fractions(self, positions: Any) -> NDArray[np.float64]:
        """Return positions as fractions of the axis, 0 to 1."""
        convert = np.log10 if self.log else np.asarray
        low, high = convert(self.limits)
        if low == high:
            return np.where(np.isnan(positions), math.nan, 0.5)
        return np.asarray((convert(positions) - low) / (high - low))


def _draw_objectives(
    complete: Sequence[FrozenTrial],
    members: Sequence[FrozenTrial],
    objectives: tuple[int, int],
    metrics: Sequence[str],
) -> Picture:
    """Draw two objectives of all complete trials, by their positions; those of the Pareto set stand out."""
    figure, axes = _chart(_NARROW, 3.6)
    for label, trials, colour, size in (
        ("complete trial", complete, BLUE, 16),
        ("Pareto set", members, BEST, 36),
    ):
        across, up = ([trial.values[position] for trial in trials] for position in objectives)
        axes.scatter(across, up, s=size, color=colour, label=label, rasterized=_is_dense(len(trials)))
    names = [metrics[position] for position in objectives]
    axes.set(xlabel=names[0], ylabel=names[1])
    _place_legend(axes)
    return Picture(f"{names[1]} against {names[0]}", "Each point is a complete trial.", figure_uri(figure))


def _draw_history(search: _Search) -> Picture:
    figure, axes = _chart(_NARROW, 3.6)
    numbers, last = [trial.number for trial in search.complete], search.trials[-1].number
    worst = -math.inf if search.maximise else math.inf
    feasible = np.where([is_feasible(trial) for trial in search.complete], search.values, worst)
    best = (np.maximum if search.maximise else np.minimum).accumulate(feasible)
    axes.scatter(
        numbers, search.values, s=16, color=BLUE, label="complete trial", rasterized=_is_dense(len(numbers))
    )
    axes.step(
        [*numbers, last],
        [*best, best[-1]],
        where="post",
        color=BEST,
        linewidth=2,
        label="best so far",
    )
    margin = max(0.5, 0.03 * len(search.trials))
    axes.set(xlabel="trial", ylabel=search.metric, xlim=(search.trials[0].number - margin, last + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _place_legend(axes)
    caption = "Each point is a complete trial, the line the best so far."
    return Picture("Optimisation history", caption, figure_uri(figure))


def _draw_curves(search: _Search) -> Picture:
    figure, axes = _chart(_NARROW, 3.6)
    dense = _is_dense(sum(len(trial.intermediate_values) for trial in search.trials))
    for state, colour in STATE_COLOURS.items():
        trials = [trial for trial in search.trials if trial.state is state and trial.number != search.best]
        layer = 1 if state is TrialState.PRUNED else 2
        _add_curves(axes, trials, state.name.lower(), colour, dense=dense, zorder=layer)
    trials = [trial for trial in search.trials if trial.number == search.best]
    _add_curves(axes, trials, "best", BEST, dense=dense, zorder=3, width=2.2)
    axes.autoscale_view()
    axes.set(xlabel="epoch", ylabel=search.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _place_legend(axes)
    caption = "Every trial by epoch, with a dot at its last one; pruned trials stop early."
    return Picture("Learning curves", caption, figure_uri(figure))


def _draw_cost(search: _Search) -> Picture:
    """Draw how many trials ended after each epoch, by state; the rungs of early stopping stand out."""
    figure, axes = _chart(_NARROW, 3.6)
    ended = {
        state: [max(trial.intermediate_values) for trial in search.trials if _ends(trial, state)]
        for state in STATE_COLOURS
    }
    last = max(max(epochs, default=0) for epochs in ended.values())
    base = np.zeros(last, np.int64)
    for state, epochs in ended.items():
        if epochs:
            counts = np.bincount(epochs, minlength=last + 1)[1:]
            label = f"{state.name.lower()}: {sum(epochs)} epochs"
            axes.bar(range(1, last + 1), counts, 0.7, bottom=base, color=STATE_COLOURS[state], label=label)
            base += counts
    axes.set(xlabel="last epoch", ylabel="trials", xlim=(0.4, last + 0.6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    _place_legend(axes)
    caption = "Trials by their last epoch. The legend has the epochs that each state cost."
    return Picture("Cost and early stopping", caption, figure_uri(figure))


def _ends(trial: FrozenTrial, state: TrialState) -> bool:
    return trial.state is state and bool(trial.intermediate_values)


def _add_curves(
    axes: Axes,
    trials: Sequence[FrozenTrial],
    label: str,
    colour: str,
    *,
    dense: bool,
    zorder: float,
    width: float = 1.0,
) -> None:
    curves = [curve for curve in map(_curve, trials) if curve]
    if not curves:
        return
    lines = LineCollection(
        curves, colors=colour, linewidths=width, label=label, rasterized=dense, zorder=zorder
    )
    axes.add_collection(lines)
    ends = np.array([curve[-1] for curve in curves])
    axes.scatter(ends[:, 0], ends[:, 1], s=9 * width, color=colour, rasterized=dense, zorder=zorder)


def _curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Return the epochs with a finite value, and that value."""
    return [point for point in sorted(trial.intermediate_values.items()) if math.isfinite(point[1])]


def _draw_importances(importances: Mapping[str, float]) -> Picture:
    shown = dict(list(importances.items())[:_PARAMETERS])
    figure, axes = _chart(_WIDE, 0.7 + 0.4 * len(shown))
    bars = axes.barh(list(shown), list(shown.values()), height=0.7, color=BLUE)
    axes.bar_label(bars, fmt="{:.1%}", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    caption = "Share in the spread of the objective over complete trials (PED-ANOVA)."
    return Picture("Importance of parameters", caption, figure_uri(figure), wide=True)


def _draw_parallel_coordinates(search: _Search, parameters: Sequence[_Dimension]) -> Picture:
    figure, axes = _chart(_WIDE, 4.2)
    dimensions = [_Dimension(search.metric, search.values), *parameters]
    heights = np.stack([dimension.fractions(dimension.positions) for dimension in dimensions], axis=1)
    worst_first = np.argsort(search.goodness, kind="stable")
    axes.add_collection(
        LineCollection(
            [list(enumerate(row)) for row in np.nan_to_num(heights, nan=_ABSENT)[worst_first]],
            array=search.goodness[worst_first],
            cmap=LinearSegmentedColormap.from_list("values", SHADES),
            linewidths=1.4,
            rasterized=_is_dense(heights.size),
        )
    )
    for position, dimension in enumerate(dimensions):
        _add_axis(axes, position, dimension)
    axes.set(xlim=(-0.3, len(dimensions) - 0.5), ylim=(min(-0.04, np.nanmin(heights)), 1.04))
    if np.isnan(heights).any():
        axes.set_ylim(bottom=_ABSENT - 0.04)
    axes.set_xticks(
        range(len(dimensions)), [dimension.label.replace(".", "\n") for dimension in dimensions], color=INK
    )
    axes.yaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    caption = "One line for each complete trial, darker is better."
    return Picture("Parallel coordinates", caption, figure_uri(figure), wide=True)


def _add_axis(axes: Axes, position: int, dimension: _Dimension) -> None:
    """Add the vertical axis of a dimension at a position on the horizontal axis."""
    ticks = dimension.ticks()
    heights, texts = dimension.fractions(list(ticks)).tolist(), list(ticks.values())
    if np.isnan(dimension.positions).any():
        heights, texts = [*heights, _ABSENT], [*texts, "not set"]
    axis = axes.secondary_yaxis(position, transform=axes.transData)
    axis.set_yticks(heights, texts)
    axis.tick_params(direction="out", length=3, color=MUTED, labelcolor=INK)
    axis.spines[:].set_color(MUTED)
    axis.set_zorder(3)  # above the lines
    for label in axis.get_yticklabels():
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1})


def _draw_slices(search: _Search, parameters: Sequence[_Dimension]) -> Picture:
    figure = Figure(figsize=(_WIDE, 3.4))
    panels = figure.subplots(1, len(parameters), sharey=True, squeeze=False).flat
    best = [trial.number for trial in search.complete].index(search.best) if search.best is not None else None
    for axes, parameter in zip(panels, parameters, strict=True):
        axes.scatter(
            parameter.positions,
            search.values,
            s=24,
            facecolor=BLUE,
            edgecolor="white",
            linewidth=0.5,
            alpha=0.8,
            rasterized=_is_dense(len(search.complete)),
        )
        if best is not None:
            axes.scatter(parameter.positions[best], search.values[best], s=34, color=BEST, edgecolor="white")
        axes.set_xlabel(parameter.label)
        _scale_axis(axes, parameter)
    figure.axes[0].set_ylabel(search.metric)
    caption = (
        "The objective of complete trials against the most important parameters; the best trial is marked."
    )
    return Picture("Slices", caption, figure_uri(figure), wide=True)


def _scale_axis(axes: Axes, parameter: _Dimension) -> None:
    """Give the horizontal axis of a slice the scale and the ticks of its parameter."""
    axes.margins(x=0.08)
    if parameter.choices:
        ticks = parameter.ticks()
        slanted = sum(map(len, ticks.values())) > 32
        axes.set_xticks(
            list(ticks),
            list(ticks.values()),
            rotation=25 if slanted else 0,
            ha="right" if slanted else "center",
        )
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        return
    if parameter.log:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(parameter.locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: format_number(float(value)))


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _is_dense(points: int) -> bool:
    return points > _VECTOR_POINTS


def _place_legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no mark."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2, handlelength=1.4)


def _shortened(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
