"""The report of a sweep: one HTML file that needs neither a network nor another file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from orchestrator.console.tables import (
    format_duration,
    format_estimate,
    format_number,
    format_values,
    objective_texts,
)
from orchestrator.report.charts import draw_charts, draw_pareto_set
from orchestrator.report.gate import draw_gains, gate_lines, gate_table
from orchestrator.report.style import picture_of, template
from orchestrator.study.attributes import epochs, reason
from orchestrator.study.selection import best_trial, own_trials
from orchestrator.tracking.gate import Decision

_ROWS = 1000
"""Most trials in the table; of more trials it has those nearest to the best, then those without a value."""

_DEFAULTS: dict[str, Any] = {
    "metric": "objective",
    "started": "",
    "sweep_id": "",
    "duration": None,
    "model": "",
    "commands": {},
    "notes": (),
    "data_sets": (),
    "scores": {},
    "runs": {},
    "tables": (),
    "gate": None,
    "candidate": "",
    "parameters": None,
    "pictures": (),
    "errors": {},
    "pareto_set": (),
    "infeasible": 0,
}


def write_report(study: optuna.Study, summary: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a study to ``path`` and return ``path``.

    Args:
        study: a study in any state, also without a complete trial. Of several objectives, most charts show
            the first. Trials that were transferred from earlier sweeps are not shown.
        summary: facts that the study does not contain. Every key is optional: ``name``, ``metric``,
            ``sweep_id``, ``started`` (text), ``duration`` (seconds), ``scores`` (value of every
            ``test/<set>/<score>``), ``data_sets`` (each with name, role, source, digest, counts), ``model``
            (text), ``errors`` (standard error of every objective), ``pareto_set`` (trials as
            `orchestrator.study.selection.describe_trial` returns them), ``infeasible`` (number of trials),
            ``notes`` (lines), ``commands`` (command of every purpose), ``runs`` (MLflow run id of every trial
            number), ``tables`` (of the finals; see `orchestrator.report.finals.Table`), ``gate`` (its
            decision), ``candidate`` (text: what was scored) with its ``parameters`` (default: those of the
            best trial), ``pictures`` (PNG files).
        path: the HTML file. Its folder is created.
    """
    summary = {"name": study.study_name, **_DEFAULTS, **summary}
    maximise, *_ = modes = [each is optuna.study.StudyDirection.MAXIMIZE for each in study.directions]
    best = best_trial(
        own_trials(study.get_trials(deepcopy=False)), *("max" if mode else "min" for mode in modes)
    )
    names = list(objective_texts(summary["pareto_set"][0])) if summary["pareto_set"] else []
    figures = draw_pareto_set(study, names)
    study = _first_objective(study, summary["metric"])
    trials = own_trials(study.get_trials(deepcopy=False))
    best = next((trial for trial in trials if best is not None and trial.number == best.number), None)
    html = template("sweep.html.jinja").render(
        summary=summary,
        name=summary["name"],
        metric=summary["metric"],
        direction="maximised" if maximise else "minimised",
        duration=_optional_duration(summary["duration"]),
        best=best,
        best_parameters=_parameters(best, summary["parameters"]) if best else [],
        gate=_gate(summary["gate"]),
        pictures=[picture_of(file) for file in summary["pictures"]],
        counts={state.name.lower(): sum(t.state is state for t in trials) for state in TrialState},
        total=len(trials),
        epochs=sum(_epochs(trial) for trial in trials),
        figures=figures + draw_charts(study, summary["metric"]),
        constant=_constant_parameters(trials),
        scores=_score_table(summary["scores"]),
        parameters=sorted({name for trial in trials for name in trial.params}),
        rows=[_row(trial, best, summary["runs"]) for trial in _listed(trials, best)],
        format_number=format_number,
        format_estimate=format_estimate,
        objective_texts=objective_texts,
        format_values=format_values,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _first_objective(study: optuna.Study, metric: str) -> optuna.Study:
    """Return the study, or a copy in memory with only the first of its several objectives.

    Optuna keeps no values of epochs for several objectives. The copy has those that were reported.
    """
    if len(study.directions) == 1:
        return study
    view = optuna.create_study(direction=study.directions[0], study_name=study.study_name)
    for trial in study.get_trials():
        trial.values = trial.values and trial.values[:1]
        reports = epochs(trial).items()
        trial.intermediate_values = {epoch: report[metric] for epoch, report in reports if metric in report}
        view.add_trial(trial)
    return view


def _gate(decision: Decision | None) -> dict[str, Any] | None:
    """Return the lines, the table and the chart of the gate's decision."""
    if decision is None:
        return None
    picture = draw_gains(decision)
    figures = [] if picture is None else [picture]
    return {"lines": gate_lines(decision), "table": gate_table(decision), "figures": figures}


def _parameters(best: FrozenTrial, values: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Return the name, the value and the searched range of each parameter; by default of the best trial."""
    ranges = {name: _range(distribution) for name, distribution in best.distributions.items()}
    return [
        (name, format_number(value), ranges.get(name, ""))
        for name, value in (best.params if values is None else values).items()
    ]


def _constant_parameters(trials: Sequence[FrozenTrial]) -> str:
    """Return the parameters of which the complete trials have a single value, with that value."""
    values: dict[str, set[Any]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            for name, value in trial.params.items():
                values.setdefault(name, set()).add(value)
    constant = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    return format_values(constant)


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " | ".join(format_number(choice) for choice in distribution.choices)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        low, high = format_number(distribution.low), format_number(distribution.high)
        return f"{low} … {high}{', log' if distribution.log else ''}"
    return str(distribution)


def _score_table(scores: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Arrange ``test/<set>/<score>`` as columns of scores and rows of sets."""
    table: dict[str, dict[str, str]] = {}
    for key, value in scores.items():
        row, _, column = key.rpartition("/")
        table.setdefault(row.removeprefix("test/"), {})[column] = format_number(value)
    return list(dict.fromkeys(column for row in table.values() for column in row)), table


def _listed(trials: Sequence[FrozenTrial], best: FrozenTrial | None) -> list[FrozenTrial]:
    """Return the trials of the table, by number."""
    if len(trials) <= _ROWS or best is None or best.value is None:
        return list(trials[:_ROWS])
    top = best.value

    def distance(trial: FrozenTrial) -> tuple[float, str]:
        return (math.inf if trial.value is None else abs(trial.value - top)), trial.state.name

    return sorted(sorted(trials, key=distance)[:_ROWS], key=lambda trial: trial.number)


def _row(trial: FrozenTrial, best: FrozenTrial | None, runs: Mapping[int, str]) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "best": best is not None and trial.number == best.number,
        "value": format_number(trial.value) if trial.state is TrialState.COMPLETE else _last_value(trial),
        "epochs": _epochs(trial) or "",
        "duration": _optional_duration(trial.duration.total_seconds() if trial.duration else None),
        "parameters": {name: format_number(value) for name, value in trial.params.items()},
        "reason": reason(trial),
        "run": runs.get(trial.number, ""),
    }


def _last_value(trial: FrozenTrial) -> str:
    if not trial.intermediate_values:
        return ""
    return f"({format_number(trial.intermediate_values[max(trial.intermediate_values)])})"


def _epochs(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=0)


def _optional_duration(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)
