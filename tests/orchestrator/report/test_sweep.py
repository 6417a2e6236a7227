"""The report of a sweep: every trial, the charts that the trials can fill, and no other file."""

import base64
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.report import charts
from orchestrator.report.charts import _Search
from orchestrator.report.sweep import write_report
from orchestrator.study import attributes
from orchestrator.study.selection import best_trial

CELL = CategoricalDistribution(["rnn", "gru", "lstm"])
COST = "Cost and early stopping"
WEIGHT = FloatDistribution(1e-3, 1.0, log=True)


@dataclass
class Record:
    name: str = "walkers"
    role: str = "train, target"
    source: str = "walkers <60 identities>"
    digest: str = "0123456789abcdef" * 4
    counts: dict[str, int] = field(default_factory=lambda: {"identities": 60})


class Page(HTMLParser):
    """Tables as rows of texts, headings of figures, and every address the page refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.rows: list[list[str]] = []
        self.figures: list[str] = []
        self.addresses: list[str] = []
        self._tag = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._tag == "h3" and data.strip():
            self.figures.append(data)
        elif self._tag in ("td", "th", "b", "code", "span") and self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data.strip()

    def row(self, first: str) -> list[str]:
        rows = [row for row in self.rows if row and row[0] == first]
        assert len(rows) == 1, f"{len(rows)} rows {first}"
        return rows[0]

    def chart(self, title: str) -> str:
        """Return the SVG source of a chart."""
        address = self.addresses[self.figures.index(title)]
        return base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()


def finished(number: int, state: TrialState, epochs: int = 3) -> optuna.trial.FrozenTrial:
    params: dict[str, object] = {"rnn.cell": ["rnn", "gru", "lstm"][number % 3]}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {"rnn.cell": CELL}
    if number % 2:
        params["weights.<b>"], distributions["weights.<b>"] = 0.01 * (number % 50 + 1), WEIGHT
    curve = {epoch: 0.1 * epoch + 0.01 * number for epoch in range(1, epochs + 1)}
    if state is TrialState.FAIL:
        curve[epochs] = math.nan
    return create_trial(
        state=state,
        value=curve[epochs] if state is TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=curve,
        user_attrs={"reason": "loss is <NaN>"} if state is TrialState.FAIL else {},
    )


def study_of(*states: TrialState, direction: str = "maximize") -> optuna.Study:
    study = optuna.create_study(direction=direction, study_name="alignment")
    for number, state in enumerate(states):
        study.add_trial(finished(number, state))
    return study


COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
FULL = [COMPLETE] * 6 + [PRUNED, FAIL] + [COMPLETE] * 2


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the report of a finished study, in a folder that did not exist."""
    summary = {
        "metric": "val/rank1",
        "scores": {"test/walkers/rank1": 0.61234, "test/walkers/mAP": 0.5, "test/mars/rank1": 0.25},
        "data_sets": [Record()],
        "commands": {"Load the model": "python -c \"load('models:/reid@champion')\""},
        "runs": {3: "feedc0de" * 4},
        "duration": 553.0,
    }
    path = write_report(study_of(*FULL), summary, tmp_path_factory.mktemp("full") / "new" / "report.html")
    return Page(path)


def test_report_needs_no_network_and_no_other_file(full: Page) -> None:
    assert "http" not in full.source and "@import" not in full.source and "<script" not in full.source
    assert full.addresses and all(address.startswith("data:image/") for address in full.addresses)
    assert len(full.source) < 2_000_000


def test_report_has_every_trial_with_its_state(full: Page) -> None:
    for number, state in enumerate(FULL):
        assert full.row(str(number))[1] == state.name.lower()


def test_report_shows_values_reasons_and_runs_of_trials(full: Page) -> None:
    assert full.row("3")[2:4] == ["0.33", "3"] and full.row("3")[-1] == "feedc0de"
    assert full.row("6")[2] == "(0.36)"
    assert full.row("7")[-2:] == ["loss is <NaN>", ""]
    assert full.row("0")[full.row("Trial").index("<b>")] == "", "a parameter the trial does not have"


def test_report_shows_scores_by_data_set(full: Page) -> None:
    assert next(row for row in full.rows if row[0] == "walkers") == ["walkers", "0.6123", "0.5"]
    assert full.row("mars") == ["mars", "0.25", ""]


def test_report_shows_best_trial_and_its_parameters(full: Page) -> None:
    assert full.row("weights.<b>") == ["weights.<b>", "0.1", "0.001 … 1, log"]
    assert re.search(r"best val/rank1, trial 9", full.source)


def test_report_shows_duration_and_data(full: Page) -> None:
    assert "0:09:13" in full.source and "60 identities" in full.source


def test_report_of_many_trials_has_all_charts(full: Page) -> None:
    assert full.figures == [
        "Optimisation history",
        "Learning curves",
        COST,
        "Importance of parameters",
        "Parallel coordinates",
        "Slices",
    ]


@pytest.mark.parametrize(
    ("title", "texts"),
    [
        ("Optimisation history", ["complete trial", "best so far", "trial", "val/rank1"]),
        (COST, ["complete: 24 epochs", "pruned: 3 epochs", "last epoch", "trials"]),
        ("Learning curves", ["complete", "pruned", "fail", "best", "epoch", "val/rank1"]),
        ("Importance of parameters", ["rnn.cell", "weights.&lt;b&gt;"]),
        ("Parallel coordinates", ["val/rank1", "cell", "&lt;b&gt;", "rnn", "gru", "lstm", "not set"]),
        ("Slices", ["val/rank1", "rnn.cell", "weights.&lt;b&gt;", "rnn", "gru", "lstm"]),
    ],
)
def test_chart_has_its_labels(title: str, texts: list[str], full: Page) -> None:
    chart = full.chart(title)
    for text in texts:
        assert f">{text}<" in chart, text


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("states", "figures"),
    [
        ([], []),
        ([COMPLETE], ["Optimisation history", "Learning curves", COST]),
        ([PRUNED, FAIL], ["Learning curves", COST]),
        (
            [COMPLETE, COMPLETE, FAIL],
            ["Optimisation history", "Learning curves", COST, "Parallel coordinates", "Slices"],
        ),
    ],
)
def test_report_of_few_trials_has_the_charts_they_fill(
    states: list[TrialState], figures: list[str], direction: str, tmp_path: Path
) -> None:
    page = Page(write_report(study_of(*states, direction=direction), {}, tmp_path / "report.html"))
    assert page.figures == figures
    assert ("No trial is complete." in page.source) == (COMPLETE not in states)
    for number in range(len(states)):
        page.row(str(number))


def test_trial_under_way_shows_its_last_value(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for cell in ("gru", "lstm", "gru", "rnn", "lstm"):
        study.add_trial(create_trial(value=0.5, params={"rnn.cell": cell}, distributions={"rnn.cell": CELL}))
    running = study.ask({"rnn.cell": CELL})
    running.report(0.2, 1)
    page = Page(write_report(study, {"metric": "val/rank1"}, tmp_path / "report.html"))
    assert page.row("5")[1:4] == ["running", "(0.2)", "1"]


def test_equal_values_have_no_importances(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for cell in ("gru", "lstm", "gru", "rnn", "lstm"):
        study.add_trial(create_trial(value=0.5, params={"rnn.cell": cell}, distributions={"rnn.cell": CELL}))
    page = Page(write_report(study, {}, tmp_path / "report.html"))
    assert page.figures == ["Optimisation history", "Parallel coordinates", "Slices"]


def test_parameter_with_a_single_value_is_named(tmp_path: Path) -> None:
    study = optuna.create_study()
    for number in range(3):
        trial = study.ask()
        trial.suggest_categorical("cell", ["gru"])
        trial.suggest_int("size", 1 + number, 1 + number)
        trial.suggest_int("depth", 2, 2)
        study.tell(trial, float(number))
    page = Page(write_report(study, {}, tmp_path / "report.html"))
    assert "all complete trials have the same value: cell=gru, depth=2</p>" in page.source


def test_infinite_value_is_listed_but_not_drawn(tmp_path: Path) -> None:
    study = optuna.create_study(direction="minimize")
    for value in (0.5, math.inf):
        cell = {"rnn.cell": "gru"}
        study.add_trial(create_trial(value=value, params=cell, distributions={"rnn.cell": CELL}))
    page = Page(write_report(study, {}, tmp_path / "report.html"))
    assert page.row("1")[2] == "inf" and page.figures == ["Optimisation history"]


def test_curve_without_a_finite_value_is_not_drawn(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(state=FAIL, intermediate_values={1: math.nan}))
    page = Page(write_report(study, {}, tmp_path / "report.html"))
    assert page.row("0")[2] == "(nan)" and page.figures == []


def test_report_of_two_objectives_shows_the_first(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, values in enumerate([[0.25, 10.0], [0.75, 30.0], [0.5, 5.0]]):
        cell = {"rnn.cell": CELL.choices[number]}
        study.add_trial(create_trial(values=values, params=cell, distributions={"rnn.cell": CELL}))
    study.add_trial(create_trial(state=FAIL, params={}, distributions={}))
    page = Page(write_report(study, {"metric": "val/rank1"}, tmp_path / "report.html"))
    assert page.row("1")[1:3] == ["complete", "0.75"] and page.row("3")[1] == "fail"
    assert "best val/rank1, trial 1" in page.source


def test_report_shows_pareto_set_errors_and_infeasible_trials(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    violated = {attributes.VIOLATED: "cost is 9, not at most 5"}
    for values, attrs in (([0.25, 1.0], {}), ([0.5, 5.0], {}), ([0.75, 9.0], violated)):
        reports = {attributes.epoch_key(epoch): {"time": 1, "val/mAP": 0.1 * epoch} for epoch in (1, 2)}
        study.add_trial(create_trial(values=values, user_attrs=reports | attrs))
    trials = [
        {"trial": f"trial-{number:04d}", "val/mAP": score, "cost": cost, "errors": {"val/mAP": 0.031}}
        | {"parameters": {"rnn.cell": "gru"}}
        for number, score, cost in ((1, 0.5, 5.0), (0, 0.25, 1.0))
    ]
    summary = {"metric": "val/mAP", "errors": {"val/mAP": 0.031}, "pareto_set": trials, "infeasible": 1}
    page = Page(write_report(study, summary, tmp_path / "report.html"))
    assert page.row("trial-0001") == ["trial-0001", "0.5 ± 0.031", "5", "rnn.cell=gru"]
    assert "<b>0.5 ± 0.031</b><span>best val/mAP, trial 1" in page.source
    assert "0 failed; 1 infeasible" in page.source
    assert "<b>6</b><span>epochs trained" in page.source
    charts = ["val/mAP against cost", "Optimisation history", "Learning curves", "Cost and early stopping"]
    assert page.figures == charts
    assert page.chart("val/mAP against cost").count("<use") > 3 + 2  # five points, and those of the legend


def test_charts_mark_a_trial_that_satisfies_the_constraints(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate([0.9, 0.5, 0.7]):
        cell = {"rnn.cell": CELL.choices[number]}
        attrs = {attributes.VIOLATED: "cost is 9, not at most 5"} if number == 0 else {}
        study.add_trial(
            create_trial(value=value, params=cell, distributions={"rnn.cell": CELL}, user_attrs=attrs)
        )
    assert _Search(study, "val/mAP").best == 2
    page = Page(write_report(study, {"metric": "val/mAP"}, tmp_path / "report.html"))
    assert "best val/mAP, trial 2" in page.source
    assert page.figures == ["Optimisation history", "Parallel coordinates", "Slices"]


def test_report_of_a_long_study_is_small_and_looks_for_the_best_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []

    def find(trials: list[optuna.trial.FrozenTrial], *modes: str) -> optuna.trial.FrozenTrial | None:
        searches.append(len(trials))
        return best_trial(trials, *modes)

    monkeypatch.setattr(charts, "best_trial", find)
    study = optuna.create_study(direction="maximize")
    study.add_trials(finished(number, COMPLETE if number % 2 else PRUNED) for number in range(1500))
    path = write_report(study, {}, tmp_path / "report.html")
    page = Page(path)
    assert path.stat().st_size < 2_000_000
    assert searches == [750]
    assert page.row("1499")[1] == "complete"
    assert "1000 of 1500" in page.source


def test_report_leaves_out_transferred_trials(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    distributions = {"rnn.cell": CELL}
    earlier = {"user_attrs": {attributes.SOURCE: "earlier", attributes.SOURCE_NUMBER: 7}}
    study.add_trial(
        create_trial(value=0.9, params={"rnn.cell": "rnn"}, distributions=distributions, **earlier)
    )
    for value, cell in ((0.5, "gru"), (0.6, "lstm"), (0.6, "gru")):
        study.add_trial(create_trial(value=value, params={"rnn.cell": cell}, distributions=distributions))
    page = Page(write_report(study, {"metric": "val/rank1"}, tmp_path / "report.html"))
    assert "3 complete, 0 pruned" in page.source
    assert [row[0] for row in page.rows if row and row[0].isdecimal()] == ["1", "2", "3"]
    assert page.row("2")[2] == "0.6" and "best val/rank1, trial 2<" in page.source
    assert page.row("rnn.cell")[1] == "lstm"
