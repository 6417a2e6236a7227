import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.report.sweep import write_report

CELL = CategoricalDistribution(["rnn", "gru", "lstm"])
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
        found = [row for row in self.rows if row and row[0] == first]
        assert len(found) == 1, f"{len(found)} rows {first}"
        return found[0]


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


def test_full_report_needs_no_network_and_holds_every_trial(tmp_path: Path) -> None:
    states = [COMPLETE] * 6 + [PRUNED, FAIL] + [COMPLETE] * 2
    summary = {
        "metric": "val/rank1",
        "scores": {"test/walkers/rank1": 0.61234, "test/walkers/mAP": 0.5, "test/mars/rank1": 0.25},
        "data_sets": [Record()],
        "commands": {"Load the model": "python -c \"load('models:/reid@champion')\""},
        "runs": {3: "feedc0de" * 4},
        "duration": 553.0,
    }
    path = write_report(study_of(*states), summary, tmp_path / "new" / "report.html")
    page = Page(path)
    assert "http" not in page.source and "@import" not in page.source and "<script" not in page.source
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert path.stat().st_size < 2_000_000
    for number, state in enumerate(states):
        assert page.row(str(number))[1] == state.name.lower()
    assert page.row("3")[2:4] == ["0.33", "3"] and page.row("3")[-1] == "feedc0de"
    assert page.row("6")[2] == "(0.36)"
    assert page.row("7")[-2:] == ["loss is <NaN>", ""]
    assert page.row("0")[page.row("Trial").index("<b>")] == "", "a parameter the trial does not have"
    assert next(row for row in page.rows if row[0] == "walkers") == ["walkers", "0.6123", "0.5"]
    assert page.row("mars") == ["mars", "0.25", ""]
    assert page.row("weights.<b>") == ["weights.<b>", "0.1", "0.001 … 1, log"]
    assert page.figures == [
        "Optimisation history",
        "Learning curves",
        "Importance of parameters",
        "Parallel coordinates",
        "Slices",
    ]
    assert "0:09:13" in page.source and "60 identities" in page.source
    assert re.search(r"best val/rank1, trial 9", page.source)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("states", "figures"),
    [
        ([], []),
        ([COMPLETE], ["Optimisation history", "Learning curves"]),
        ([PRUNED, FAIL], ["Learning curves"]),
        (
            [COMPLETE, COMPLETE, FAIL],
            ["Optimisation history", "Learning curves", "Parallel coordinates", "Slices"],
        ),
    ],
)
def test_studies_that_hardly_began(
    states: list[TrialState], figures: list[str], direction: str, tmp_path: Path
) -> None:
    page = Page(write_report(study_of(*states, direction=direction), {}, tmp_path / "report.html"))
    assert page.figures == figures
    assert ("No trial is complete." in page.source) == (COMPLETE not in states)
    for number in range(len(states)):
        page.row(str(number))


def test_trials_under_way_and_equal_values(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for cell in ("gru", "lstm", "gru", "rnn", "lstm"):
        study.add_trial(create_trial(value=0.5, params={"rnn.cell": cell}, distributions={"rnn.cell": CELL}))
    running = study.ask({"rnn.cell": CELL})
    running.report(0.2, 1)
    page = Page(write_report(study, {"metric": "val/rank1"}, tmp_path / "report.html"))
    assert page.row("5")[1:4] == ["running", "(0.2)", "1"]
    assert "Importance of parameters" not in page.figures


def test_first_of_several_objectives_is_shown(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, values in enumerate([[0.25, 10.0], [0.75, 30.0], [0.5, 5.0]]):
        cell = {"rnn.cell": CELL.choices[number]}
        study.add_trial(create_trial(values=values, params=cell, distributions={"rnn.cell": CELL}))
    study.add_trial(create_trial(state=FAIL, params={}, distributions={}))
    page = Page(write_report(study, {"metric": "val/rank1"}, tmp_path / "report.html"))
    assert page.row("1")[1:3] == ["complete", "0.75"] and page.row("3")[1] == "fail"
    assert "best val/rank1, trial 1" in page.source


def test_long_study_keeps_the_file_small(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials(finished(number, COMPLETE if number % 2 else PRUNED) for number in range(1500))
    path = write_report(study, {}, tmp_path / "report.html")
    page = Page(path)
    assert path.stat().st_size < 2_000_000
    assert page.row("1499")[1] == "complete"
    assert "1000 of 1500" in page.source
