"""A study as one HTML file that needs nothing else: no network, no other file."""

import base64
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import optuna
import optuna.visualization.matplotlib as charts
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

_ROWS = 1000  # of the table of trials; a longer one keeps the best and the failed
_PARAMETERS = 6  # shown in a chart, the most important first
INK, MUTED, RULE = "#1f2933", "#616e7c", "#e4e7eb"
_COLOURS = {
    TrialState.COMPLETE: "#2a6fdb",
    TrialState.PRUNED: "#c3cad3",
    TrialState.FAIL: "#d64545",
    TrialState.RUNNING: "#2f9e6e",
    TrialState.WAITING: "#c3cad3",
}
BEST = "#e07a1f"
_SHADES = ["#cddcf3", "#0b3d91"]
_NOTHING: dict[str, Any] = {
    "started": "",
    "sweep_id": "",
    "model": "",
    "notes": (),
    "commands": {},
    "data_sets": (),
    "scores": {},
    "reasons": {},
    "runs": {},
}


def write_report(study: optuna.Study, summary: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a study to `path` and return it.

    Args:
        study: at any stage, also without a complete trial; of several objectives the first is shown.
        summary: what the study does not know, every key optional: `name`, `metric`, `sweep_id`,
            `started` (text), `duration` (seconds), `scores` (`test/<set>/<score>`: value), `data_sets` (each
            with name, role, source, digest, counts), `model` (text), `commands` (what it does: command),
            `reasons` (trial number: why it ended, else its user attribute `reason`), `runs` (trial number:
            MLflow run id), `notes` (lines of text).
        path: the HTML file; its folder is made.
    """
    summary = {**_NOTHING, **summary}
    study = _first_objective(study)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best = study.best_trial if complete else None
    metric = str(summary.get("metric", "objective"))
    importances = _importances(study, complete)
    html = template("sweep.html.jinja").render(
        name=summary.get("name", study.study_name),
        metric=metric,
        direction="maximised" if study.direction is optuna.study.StudyDirection.MAXIMIZE else "minimised",
        summary=summary,
        best=best,
        best_params=_best_params(best) if best else [],
        counts={state.name.lower(): sum(t.state is state for t in trials) for state in TrialState},
        total=len(trials),
        epochs=sum(_epochs(trial) for trial in trials),
        duration=_duration(summary.get("duration")),
        figures=_figures(study, trials, complete, importances, metric),
        scores=_score_table(summary["scores"]),
        parameters=sorted({name for trial in trials for name in trial.params}),
        rows=_rows(trials, best, summary),
        digits=_text,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _first_objective(study: optuna.Study) -> optuna.Study:
    """The study itself, or a copy in memory that knows the first of its objectives only."""
    if len(study.directions) == 1:
        return study
    view = optuna.create_study(direction=study.directions[0], study_name=study.study_name)
    for trial in study.get_trials():
        trial.values = trial.values and trial.values[:1]
        view.add_trial(trial)
    return view


def _best_params(best: FrozenTrial) -> list[tuple[str, str, str]]:
    return [(name, _text(value), _range(best.distributions[name])) for name, value in best.params.items()]


def template(name: str) -> jinja2.Template:
    """A page in the style of the reports."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """A picture as an address that holds it, so that the page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _rows(
    trials: Sequence[FrozenTrial], best: FrozenTrial | None, summary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    reasons, runs = summary["reasons"], summary["runs"]
    shown = list(trials)
    if len(shown) > _ROWS and best is not None:
        # Near the best value first, then failures: what a reader looks for.
        shown.sort(key=lambda t: (t.value is None, abs((t.value or 0.0) - (best.value or 0.0)), t.state.name))
        shown = sorted(shown[:_ROWS], key=lambda trial: trial.number)
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "best": best is not None and trial.number == best.number,
            "value": _text(trial.value) if trial.state is TrialState.COMPLETE else _last_value(trial),
            "epochs": _epochs(trial) or "",
            "duration": _duration(trial.duration.total_seconds() if trial.duration else None),
            "params": {name: _text(value) for name, value in trial.params.items()},
            "reason": reasons.get(trial.number) or trial.user_attrs.get("reason", ""),
            "run": runs.get(trial.number, ""),
        }
        for trial in shown[:_ROWS]
    ]


def _last_value(trial: FrozenTrial) -> str:
    if not trial.intermediate_values:
        return ""
    return f"({_text(trial.intermediate_values[max(trial.intermediate_values)])})"


def _epochs(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=0)


def _score_table(scores: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """`test/<set>/<score>` to columns of scores and rows of sets."""
    table: dict[str, dict[str, str]] = {}
    for key, value in scores.items():
        row, _, column = key.rpartition("/")
        table.setdefault(row.removeprefix("test/"), {})[column] = _text(value)
    return list(dict.fromkeys(column for row in table.values() for column in row)), table


def _varied(complete: Sequence[FrozenTrial]) -> list[str]:
    values: dict[str, set[Any]] = {}
    for trial in complete:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, seen in values.items() if len(seen) > 1)


def _importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """Share of each parameter in the spread of the objective, largest first; empty where it says nothing."""
    values = {trial.value for trial in complete if trial.value is not None and math.isfinite(trial.value)}
    varied = _varied(complete)
    if len(complete) < 4 or len(values) < 2 or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=varied)


def _figures(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    complete: Sequence[FrozenTrial],
    importances: Mapping[str, float],
    metric: str,
) -> list[dict[str, str]]:
    figures = []

    def add(
        title: str, caption: str, draw: Callable[[], object], finish: Callable[[Figure], None], w: float
    ) -> None:
        image = _image(draw, finish, (w, 3.6))
        figures.append({"title": title, "caption": caption, "image": image, "wide": "wide" if w > 8 else ""})

    if complete:
        add(
            "Optimisation history",
            "Each point is a complete trial, the line the best so far.",
            lambda: charts.plot_optimization_history(study, target_name=metric),
            _finish_history,
            6.4,
        )
    if any(trial.intermediate_values for trial in trials):
        add(
            "Learning curves",
            "Every trial by epoch; pruned trials stop early.",
            lambda: charts.plot_intermediate_values(study),
            lambda figure: _finish_curves(figure, study, trials, metric),
            6.4,
        )
    if importances:
        add(
            "Importance of parameters",
            "Share in the spread of the objective over complete trials (PED-ANOVA).",
            lambda: charts.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), params=list(importances)[:_PARAMETERS]
            ),
            _finish_importances,
            13.0,
        )
    top = (list(importances) or _varied(complete))[:_PARAMETERS]
    if top:
        add(
            "Parallel coordinates",
            "One line per complete trial, darker is better.",
            lambda: charts.plot_parallel_coordinate(study, params=top, target_name=metric),
            partial(_finish_parallel, labels=[metric, *map(_short, sorted(top))]),
            13.0,
        )
        add(
            "Slices",
            "The objective of complete trials against the most important parameters.",
            lambda: charts.plot_slice(study, params=top[:4], target_name=metric),
            _finish_slices,
            13.0,
        )
    return figures


def _image(draw: Callable[[], object], finish: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """A chart of Optuna's in the report's own style, as a data URI."""
    plt.switch_backend("agg")
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        draw()
        figure = plt.gcf()
        figure.set_size_inches(*size)
        restyle(figure)
        finish(figure)
        drawing = io.BytesIO()
        # A drawing with thousands of marks is smaller and faster as pixels.
        marks = sum(len(axes.lines) + len(axes.collections) for axes in figure.axes)
        kind, mime = ("svg", "image/svg+xml") if marks < 300 else ("png", "image/png")
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(drawing, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
        plt.close(figure)
    return data_uri(drawing.getvalue(), mime)


def restyle(figure: Figure) -> None:
    """Give a chart the style of the reports."""
    figure.patch.set_facecolor("white")
    if figure.get_suptitle():
        figure.suptitle("")
    for axes in figure.axes:
        axes.set_title("", loc="left")
        axes.set_title("")
        axes.set_facecolor("white")
        axes.grid(visible=True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        for side, spine in axes.spines.items():
            spine.set_color(RULE)
            if side == "top":
                spine.set_visible(False)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
            text.set_fontsize(10)


def _finish_history(figure: Figure) -> None:
    axes = figure.axes[0]
    for points in axes.collections:
        points.set_color(_COLOURS[TrialState.COMPLETE])
    for line in axes.lines:
        line.set(color=BEST, alpha=1.0, linewidth=2.0, drawstyle="steps-post")
    axes.legend(["complete trial", "best so far"], frameon=False, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _finish_curves(figure: Figure, study: optuna.Study, trials: Sequence[FrozenTrial], metric: str) -> None:
    axes = figure.axes[0]
    states = {f"Trial{trial.number}": trial.state for trial in trials}
    complete = TrialState.COMPLETE in states.values()
    best = f"Trial{study.best_trial.number}" if complete else ""
    for line in axes.lines:
        label = str(line.get_label())
        colour = BEST if label == best else _COLOURS[states[label]]
        line.set(color=colour, alpha=1.0, linewidth=2.2 if label == best else 1.2, markersize=4)
        line.set_zorder(3 if label == best else 1 if states[label] is TrialState.PRUNED else 2)
    drawn = {states[str(line.get_label())] for line in axes.lines}
    names = [(state.name.lower(), colour) for state, colour in _COLOURS.items() if state in drawn]
    names += [("best", BEST)] if complete else []
    axes.legend(
        handles=[Line2D([], [], color=colour, label=name, linewidth=2) for name, colour in names],
        frameon=False,
        fontsize=9,
    )
    axes.set(xlabel="Epoch", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _finish_importances(figure: Figure) -> None:
    axes = figure.axes[0]
    for bar in axes.patches:
        bar.set_facecolor(_COLOURS[TrialState.COMPLETE])
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False, axis="y")
    if (legend := axes.get_legend()) is not None:
        legend.remove()


def _finish_parallel(figure: Figure, labels: Sequence[str]) -> None:
    axes = figure.axes[0]
    stacked = [label.replace(".", "\n") for label in labels]
    axes.set_xticks(range(len(labels)), stacked, rotation=0, fontsize=9, color=INK)
    for each in figure.axes:
        each.grid(visible=False)
        for spine in each.spines.values():
            spine.set_color(MUTED)
    for lines in axes.collections:  # Optuna's palest line cannot be seen on white
        reverse = lines.get_cmap().name.endswith("_r")
        shades = LinearSegmentedColormap.from_list("shades", _SHADES[:: -1 if reverse else 1])
        lines.set(cmap=shades, linewidth=1.6)
    _remove_colorbar(figure)


def _finish_slices(figure: Figure) -> None:
    _remove_colorbar(figure)
    for axes in figure.axes:
        axes.set_xlabel(_short(axes.get_xlabel()))
        for points in axes.collections:
            points.set_array(None)
            points.set(facecolor=_COLOURS[TrialState.COMPLETE], edgecolor="white", alpha=0.8)


def _remove_colorbar(figure: Figure) -> None:
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            figure.delaxes(axes)


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " | ".join(_text(choice) for choice in distribution.choices)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return f"{_text(distribution.low)} … {_text(distribution.high)}{', log' if distribution.log else ''}"
    return str(distribution)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
