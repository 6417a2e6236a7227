"""The pages of a registered model and of its versions, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.tracking.gate import comparison_rows
from orchestrator.tracking.promotion import Record
from orchestrator.trainable import DataSetRecord

PAGE_CHARACTERS = 5000
"""The longest page: MLflow's column has so many characters, and PostgreSQL enforces that."""

_REST = (
    "\n\nThis page is cut, because MLflow takes no longer one: the rest is in `registry/` of the run, and in"
    " the model card among the files of the version."
)

_SHORT_DIGEST = 12
"""Characters of a digest in a table."""


def of_model(name: str) -> str:
    """Return the page of a registered model."""
    return (
        f"Versions of **{name}**, each registered by a sweep. The page of a version says what trained it, how"
        " it scores, and why it has or has not taken its alias.\n\n"
        f"`python -m orchestrator.registry history {name}` lists who held an alias when, and why. Load a"
        " fixed version where results must not change: an alias may move to another one."
    )


def of_version(
    *,
    job: str,
    trial: str,
    run: str,
    job_run: str,
    scores: Mapping[str, float],
    parameters: Mapping[str, Any],
    data_sets: Sequence[DataSetRecord],
    records: Sequence[Record],
    text: str = "",
) -> str:
    """Return the page of a version, of at most `PAGE_CHARACTERS`.

    Args:
        job: the sweep that registered it.
        trial: its trial.
        run: link to the run of the trial.
        job_run: link to the run of the job.
        scores: scores on the targets.
        parameters: searched parameters.
        data_sets: data sets in their roles.
        records: the decision about the version, and later changes by hand.
        text: the model card of the trainable.
    """
    lines = [f"Best of {job}, trial {trial}: [its run]({run}), [the run of the job]({job_run}).", ""]
    lines += [line for record in records[:1] for line in _decision(record)]
    lines += _table("score", "value", {name: f"{value:.4g}" for name, value in scores.items()})
    lines += _table("parameter", "value", parameters)
    if data_sets:
        lines += ["", "| data set | role | content | source | digest |", "|---|---|---|---|---|"]
        for used in data_sets:
            counts = ", ".join(f"{count} {name}" for name, count in used.counts.items())
            digest = used.digest[:_SHORT_DIGEST]
            lines += [f"| {used.name} | {used.role} | {counts} | {used.source} | `{digest}` |"]
    lines += ["", text] if text else []
    return _cut("\n".join(lines))


def _cut(page: str) -> str:
    """Return a page that is not too long, cut at the end of a line and not within a block of code."""
    if len(page) <= PAGE_CHARACTERS:
        return page
    start = page[: PAGE_CHARACTERS - len(_REST)]
    kept = start.rpartition("\n")[0].rstrip() or start
    if kept.count("```") % 2:
        kept = kept[: kept.rindex("```")].rstrip()
    return kept + _REST


def _decision(record: Record) -> list[str]:
    lines = [f"**{record.verdict.capitalize()}** for the alias `{record.alias}`: {record.reason}.", ""]
    lines += [f"- left out: {target}, because {why}" for target, why in record.not_compared.items()]
    lines += [f"- {note}" for note in record.notes]
    if not record.targets:
        return lines
    before = f"version {record.champion}"
    lines += ["", f"| {record.metric} | this version | {before} | difference | interval |"]
    lines += ["|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in comparison_rows(record.targets, record.overall)]
    return lines


def _table(key: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    return ["", f"| {key} | {value} |", "|---|---|", *(f"| {name} | {each} |" for name, each in rows.items())]
