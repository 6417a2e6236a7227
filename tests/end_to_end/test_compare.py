"""The comparison: its file, its order, what continues, what its figures say, and the command itself."""

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from rich.console import Console

from orchestrator.config.comparison import Comparison, read
from orchestrator.config.sweep import Override
from orchestrator.errors import InputError
from orchestrator.execution.trial import FAILURE, SCORES, TRAINED
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.report import comparison as report
from orchestrator.storage.directory import JobDirectory
from orchestrator.study import statistics as results
from orchestrator.study.grid import ComparisonStudy
from orchestrator.study.statistics import Difference, Row, summarise
from orchestrator.trainable import Illustrating
from tests.support import command_line

compare = partial(command_line.run, "compare")

FILE = """\
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 4}
variants:
  plain:
  quick: {steps: 2}
  noisy: {noise.kind: uniform, x: 1.0}
splits: {y: [0, 1]}
seeds: [0, 7]
baseline: plain
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "parabola.yaml"
    path.write_text(FILE)
    return path


def given(file: Path, *overrides: str) -> Comparison:
    store = Override("storage", str(file.parent / "store"), "--storage")
    return read(file, [store, *map(Override.parse, overrides)], environment={})


# The file


def test_all_variants_run_on_one_split_and_seed_before_the_next(file: Path) -> None:
    comparison = given(file)
    assert [cell.values for cell in comparison.cells[:4]] == [
        {"variant": "plain", "y": 0, "seed": 0},
        {"variant": "quick", "y": 0, "seed": 0},
        {"variant": "noisy", "y": 0, "seed": 0},
        {"variant": "plain", "y": 0, "seed": 7},
    ]
    assert len(comparison.cells) == 12
    assert comparison.cells[-1].values == {"variant": "noisy", "y": 1, "seed": 7}
    config = comparison.cell_config(comparison.cells[-1]).model_dump()
    assert (config["x"], config["y"], config["seed"], config["epochs"]) == (1.0, 1.0, 7, 4)
    assert config["noise"] == {"kind": "uniform", "width": 0.1}


def test_defaults(file: Path) -> None:
    file.write_text("".join(FILE.splitlines(keepends=True)[:7]).replace("epochs: 4", "epochs: 4, seed: 3"))
    comparison = given(file)
    assert comparison.baseline == "plain"
    assert [cell.place for cell in comparison.cells] == [(("seed", 3),)] * 3
    assert comparison.tracking.experiment == "parabola"


def test_overrides_reach_paths_of_variants_and_splits(file: Path) -> None:
    comparison = given(
        file, "variants.quick.noise.width=0.5", "variants.noisy.noise.kind=none", "splits.y=[3]", "seeds=[1]"
    )
    assert comparison.variants["quick"] == {"steps": 2, "noise.width": 0.5}
    assert comparison.variants["noisy"]["noise.kind"] == "none"
    assert comparison.places == [(("y", 3), ("seed", 1))]


def test_a_score_is_better_the_way_the_metric_of_its_name_is(file: Path) -> None:
    comparison = given(file)
    assert comparison.mode("test/parabola/score") == "max"
    assert comparison.mode("test/parabola/loss") == "min"
    assert comparison.mode("test/parabola/unheard-of") == "max"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("variants={}", "variants: give at least two variants"),
        ("variants={a: {}}", "variants: give at least two variants"),
        ("variants=3", "variants: should be a mapping of keys to values, not 3"),
        ("variants={a: 1, b: {}}", "variants.a: should be a mapping of keys to values, not 1"),
        ("variants={'a/b': {}, c: {steps: 2}}", "'a/b' is no name of a variant"),
        ("variants.twin={steps: 2}", "variants.twin: is the same as quick; take one of them out"),
        ("variants.quick.stpes=2", "variants.quick.stpes: unknown key; did you mean 'steps'?"),
        ("variants.quick.steps=9", "variants.quick.steps: should be less than or equal to 8, not 9"),
        ("variants.quick.noise.kin=x", "variants.quick.noise.kin: unknown key; did you mean 'kind'?"),
        ("variants.quick.noise={kin: x}", "variants.quick.noise: kin: unknown key; did you mean 'kind'?"),
        ("variants.quick.seed=3", "variants.quick.seed: seed is varied for every variant alike"),
        ("variants.quick.y=3", "variants.quick.y: y is varied for every variant alike"),
        ("config.epohcs=3", "config.epohcs: unknown key; did you mean 'epochs'?"),
        ("config.y=3", "y is varied by splits; write --set 'splits.y=[...]'"),
        ("config.seed=3", "seed is varied by seeds; write --set 'seeds=[...]'"),
        ("splits.y=[]", "splits.y: [] is no choice; write [first, second, ...]"),
        ("splits.y=[0, 0]", "splits.y: 0 is given twice"),
        ("splits.y=[0, 11]", "splits.y.1: should be less than or equal to 10, not 11"),
        ("splits.x=[0]", "splits.x: give one path and its values, not 2: y, x"),
        ("splits={z: [0]}", "splits.z.0: unknown key"),
        ("splits={seed: [0]}", "splits.seed: write seeds"),
        ("seeds=[0, one]", "seeds.1: should be a whole number, not 'one'"),
        ("seeds=3", "seeds: 3 is no choice"),
        ("baseline=plian", "baseline: there is no variant 'plian'; did you mean 'plain'?"),
        ("metrics=[a, a]", "metrics: 'a' is given twice"),
        ("metrcis=[a]", "metrcis: unknown key; did you mean 'metrics'?"),
        ("budget.trials=3", "budget: unknown key"),
        ("resources.workers=0", "resources.workers: should be greater than or equal to 1, not 0"),
        ("trainable=tests.support.example_trainable:Example", "did you mean 'ExampleTrainable'?"),
    ],
)
def test_each_fault_is_one_line_at_its_place(file: Path, override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        given(file, override)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"--set {override}: ")


def test_a_fault_in_the_file_has_its_line(file: Path) -> None:
    file.write_text(FILE.replace("steps: 2", "stpes: 2"))
    with pytest.raises(InputError, match=r"parabola.yaml:6: variants\.quick\.stpes: unknown key"):
        given(file)
    file.write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        given(file)


def test_more_variants_splits_and_seeds_continue_and_other_settings_are_refused(file: Path) -> None:
    with JobDirectory(given(file)).open(fresh=False) as (first, _):
        pass
    more = given(file, "variants.far.x=5", "splits.y=[2, 0, 1]", "seeds=[0, 7, 8]", "resources.cpus=2")
    JobDirectory(more).check(fresh=False)
    with JobDirectory(more).open(fresh=False) as (second, _):
        assert second == first
    fewer = given(file, "seeds=[0]", "baseline=quick", "metrics=[a]")
    JobDirectory(fewer).check(fresh=False)
    for overrides, expected in (
        (["variants.far.x=6"], r"variants\.far: x: 5.0 → 6.0; change 'name'"),
        (["config.epochs=5"], r"other settings: config\.epochs: 4 → 5; change"),
        (["variants.noisy.steps=2", "variants.quick.steps=1", "variants.quick.x=2"], "noisy: steps: 1 → 2"),
        (["splits={x: [0, 1]}", "variants.noisy={steps: 3}"], "noisy"),
    ):
        with pytest.raises(InputError, match=expected):
            JobDirectory(given(file, *overrides)).check(fresh=False)
    JobDirectory(given(file, "config.epochs=5")).check(fresh=True)


def test_a_folder_of_a_sweep_is_refused(file: Path) -> None:
    comparison = given(file)
    folder(comparison).mkdir(parents=True)
    (folder(comparison) / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match="holds a sweep of the same name; change 'name'"):
        JobDirectory(comparison).check(fresh=False)


# The study


class TuneTrial:
    """The part of a Ray Tune trial that the scheduler looks at."""

    def __init__(self, point: Any) -> None:
        self.config = point


def folder(comparison: Comparison) -> Path:
    return Path(comparison.storage, comparison.name)


def open_study(comparison: Comparison) -> ComparisonStudy:
    directory = JobDirectory(comparison)
    directory.path = folder(comparison)
    directory.path.mkdir(parents=True, exist_ok=True)
    return ComparisonStudy(comparison, directory)


def run(study: ComparisonStudy, *reports: dict[str, Any], ends: bool = True) -> dict[str, Any]:
    """One trial through searcher and scheduler, as Ray Tune calls them."""
    searcher, scheduler = StudySearcher(study), StudyScheduler(study)
    point = searcher.suggest("a")
    assert isinstance(point, dict)
    for each in reports:
        assert scheduler.on_trial_result(None, TuneTrial(point), each) == "CONTINUE"
    if ends:
        searcher.on_trial_complete("a", reports[-1])
    return point


def trained(study: ComparisonStudy) -> dict[str, Any]:
    return {TRAINED: f"{study._directory.root}/trials/checkpoint"}


def scored(score: float) -> dict[str, Any]:
    return {SCORES: json.dumps({"test/parabola/score": score})}


EPOCH = {"epoch": 1, "val/score": 1.0, "names": ["epoch", "val/score"]}


def test_a_scored_trial_is_complete_and_written_down(file: Path) -> None:
    comparison = given(file)
    study = open_study(comparison)
    point = run(study, EPOCH, trained(study), scored(0.5))
    assert point["values"] == {"variant": "plain", "y": 0, "seed": 0} and point["checkpoint"] is None
    assert study.count() == {"running": 0, "complete": 1, "failed": 0}
    assert (study.left(), study.total) == (11, 12)
    assert study.parameters({"variant": "quick", "seed": 0}) == {"variant": "quick", "seed": 0, "steps": 2}
    assert study.standing() == "test/parabola/score plain 0.500 (1)"
    with (folder(comparison) / "results.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert rows[0] == {
        "trial": "0",
        "variant": "plain",
        "y": "0",
        "seed": "0",
        "state": "complete",
        "reason": "",
        "test/parabola/score": "0.5",
    }
    assert [row["state"] for row in rows[1:]] == ["waiting"] * 11
    assert json.loads((folder(comparison) / "results.json").read_text())[0]["number"] == 0


def test_an_interrupted_trial_continues_and_a_trained_one_is_only_scored(file: Path) -> None:
    study = open_study(given(file))
    run(study, EPOCH, trained(study), scored(0.5))
    run(study, EPOCH, ends=False)
    run(study, EPOCH, trained(study), ends=False)

    again = open_study(given(file))
    assert again.left() == 11
    first, second = run(again, EPOCH, trained(again), scored(0.1)), run(again, scored(0.2))
    assert (first["number"], first["checkpoint"]) == (1, None)
    assert (second["number"], second["checkpoint"]) == (2, trained(study)[TRAINED])
    assert run(again, scored(0.3))["values"] == {"variant": "plain", "y": 0, "seed": 7}
    assert again.count()["complete"] == 4


def test_what_failed_is_tried_again_by_the_next_driver_only(file: Path) -> None:
    small = ["splits={}", "seeds=[0]", "variants={plain: {}, quick: {steps: 2}}"]
    study = open_study(given(file, *small))
    run(study, EPOCH, {FAILURE: "RuntimeError: no", "log": "..."})
    run(study, EPOCH, trained(study), {FAILURE: "it could not be scored: RuntimeError: no"})
    assert study.ask() is None and study.ended()
    assert [row.state for row in study.rows()] == ["failed", "failed"]
    assert next(row.reason for row in study.rows()) == "RuntimeError: no"

    again = open_study(given(file, *small))
    assert (again.left(), again.count()["failed"]) == (2, 0)
    retrained, rescored = run(again, EPOCH, trained(again), scored(0.1)), run(again, scored(0.2))
    assert (retrained["number"], retrained["checkpoint"]) == (2, None)
    assert (rescored["number"], rescored["checkpoint"]) == (3, trained(study)[TRAINED])
    assert again.ask() is None
    assert [(row.state, row.number) for row in again.rows()] == [("complete", 2), ("complete", 3)]


def test_metrics_of_the_last_epoch_are_compared_where_the_file_names_them(file: Path) -> None:
    small = ["splits={}", "seeds=[0]", "variants={plain: {}, quick: {steps: 2}}"]
    asked = [*small, "metrics=[val/score, test/parabola/score]"]
    study = open_study(given(file, *asked))
    run(study, EPOCH, EPOCH | {"epoch": 2, "val/score": 3.0}, trained(study), scored(0.5))
    run(study, EPOCH, trained(study), {FAILURE: "it could not be scored: RuntimeError: no"})
    again = open_study(given(file, *asked))
    run(again, {SCORES: json.dumps({})})  # trained before, and no targets
    both, alone = ({"val/score": 3.0, "test/parabola/score": 0.5}, {"val/score": 1.0})
    assert [row.scores for row in again.rows()] == [both, alone]
    assert [again.scores(trial) for trial in again.trials if trial.state == TrialState.COMPLETE] == [
        {"test/parabola/score": 0.5},
        {},
    ]  # what MLflow has as scores: epochs have their own points
    scores = [row.scores for row in open_study(given(file, *small)).rows()]
    assert scores == [{"test/parabola/score": 0.5}, {}]


def test_a_larger_file_adds_its_trials_and_a_smaller_one_shows_its_own(file: Path) -> None:
    study = open_study(given(file, "splits.y=[1]", "seeds=[0]"))
    for score in (0.1, 0.2, 0.3):
        run(study, trained(study), scored(score))
    larger = open_study(given(file))
    assert (larger.total, larger.left()) == (12, 9)
    assert run(larger, scored(0.4))["values"] == {"variant": "plain", "y": 0, "seed": 0}
    assert [row.state for row in larger.rows()].count("complete") == 4
    smaller = open_study(given(file, "splits.y=[1]", "seeds=[0]"))
    assert smaller.ended() and [row.scores["test/parabola/score"] for row in smaller.rows()] == [
        0.1,
        0.2,
        0.3,
    ]


def test_a_trial_without_scores_fails_and_one_of_a_driver_that_died_at_once_is_left_alone(file: Path) -> None:
    study = open_study(given(file))
    run(study, EPOCH)
    assert study.trials[0].user_attrs["reason"] == "it ended without scores"
    study.study.ask()  # and the driver dies
    again = open_study(given(file))
    assert again.trials[1].state == TrialState.RUNNING
    assert run(again, trained(again), scored(0.1))["number"] == 2


# The figures


def rows_of(**scores: list[float | None]) -> list[Row]:
    return [
        Row(name, {"split": split}, "complete", scores={} if value is None else {"rank1": value})
        for name, values in scores.items()
        for split, value in enumerate(values)
    ]


def test_differences_are_paired_and_lack_no_partner() -> None:
    rows = rows_of(a=[0.1, 0.2, None, 0.4], b=[0.2, 0.4, 0.9, float("nan")])
    (column,) = summarise(rows, ["a", "b"], "a", {"rank1": "max"})
    a, b = column.variants["a"], column.variants["b"]
    assert a.difference is None and b.difference is not None
    assert b.difference.pairs == pytest.approx((0.1, 0.2))
    assert b.difference.mean == pytest.approx(0.15) and b.difference.interval is None
    assert (len(a.values), len(b.values), b.best, a.best) == (3, 3, True, False)
    assert a.mean == pytest.approx(0.7 / 3)
    assert a.deviation == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert column.spread(b) == "0.500 ± 0.361"
    assert column.gain(b.difference) == "+0.150 [\N{EN DASH}]"
    lower = summarise(rows, ["a", "b"], "a", {"rank1": "min"})[0]
    assert lower.variants["a"].best and not lower.variants["b"].best


def test_the_interval_is_that_of_the_percentile_bootstrap() -> None:
    pairs = (0.0, 0.0, 0.0, 1.0)  # the mean of a resample is Binomial(4, 1/4) / 4
    low, high = Difference(pairs).interval or (None, None)
    assert (low, high) == (0.0, 0.75)  # P(4) = 0.4 %, P(3 or more) = 5.1 %: 97.5 % lies at 3 of 4
    many = tuple(np.random.default_rng(1).normal(0.05, 0.02, 200))
    interval = Difference(many).interval
    assert interval is not None
    wide = 1.96 * np.std(many) / np.sqrt(200)
    assert interval == pytest.approx((np.mean(many) - wide, np.mean(many) + wide), abs=0.1 * wide)
    assert Difference(many).interval == interval, "seeded"


@pytest.mark.parametrize(
    ("pairs", "interval"),
    [((), None), ((0.1,), None), ((0.1, 0.2), None), ((0.25, 0.25, 0.25), (0.25, 0.25)), ((0, 0, 0), (0, 0))],
)
def test_degenerate_differences(pairs: tuple[float, ...], interval: tuple[float, float] | None) -> None:
    difference = Difference(pairs)
    assert difference.interval == interval
    assert (difference.mean is None) == (not pairs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4712, "0.471"), (47.12, "47.1"), (1234.5, "1234"), (0.00012, "0.000120"), (0.0, "0.000")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    (column,) = summarise(rows_of(a=[value]), ["a"], "a", {"rank1": "max"})
    assert column.number(column.variants["a"].mean) == text


def test_results_are_one_row_a_trial(tmp_path: Path) -> None:
    rows = [*rows_of(a=[0.5]), Row("b", {"split": 0}, "failed", 4, "a, b")]
    results.write(rows, tmp_path)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines == ["trial,variant,split,state,reason,rank1", ",a,0,complete,,0.5", '4,b,0,failed,"a, b",']
    assert [Row(**row) for row in json.loads((tmp_path / "results.json").read_text())] == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]


# What it shows


def shown(comparison: Comparison, metrics: list[str]) -> tuple[list[Row], list[results.Column]]:
    rows = [
        Row(
            cell.variant, dict(cell.place), "complete", number, "", dict.fromkeys(metrics, 0.1 * (number % 5))
        )
        for number, cell in enumerate(comparison.cells[:-1])
    ]
    rows.append(Row("noisy", dict(comparison.cells[-1].place), "failed", 11, "RuntimeError: <no>"))
    modes = {metric: comparison.mode(metric) for metric in metrics}
    return rows, summarise(rows, list(comparison.variants), comparison.baseline, modes)


def test_the_table_fits_plain_output_and_says_how_many_trials_there_are(file: Path) -> None:
    comparison = given(file)
    metrics = [f"test/{name}/{metric}" for name in ("walkers", "b") for metric in ("rank1", "rank5", "mAP")]
    rows, columns = shown(comparison, metrics)
    console = Console(width=120, record=True)
    for table in report.tables(comparison, columns):
        console.print(table)
    text = console.export_text()
    assert "test/walkers" in text and "test/b" in text and "…" not in text
    assert re.search(r"noisy +│ +3 │ +0\.\d+ ± 0\.\d+", text)
    assert re.search(r"0\.\d+ ± 0\.\d+ \*", text)
    said = " ".join(report.explanation(comparison, rows))
    assert "2 splits x 2 seeds" in said and "4 pairs" in said and "1 of 12 trials failed" in said
    assert "where splits share data" in said and "not how it would be on a new population" in said
    assert "| noisy | " in report.markdown(comparison, columns)


def test_the_report_needs_no_other_file(file: Path, tmp_path: Path) -> None:
    comparison = given(file)
    rows, columns = shown(comparison, ["test/walkers/rank1", "test/b/rank1"])
    chart = tmp_path / "differences.png"
    assert report.draw_differences(comparison, columns, chart)
    assert chart.read_bytes()[:4] == b"\x89PNG"
    summary = {
        "job_id": "feedc0de",
        "data_sets": [],
        "commands": {"MLflow": "mlflow ui"},
        "notes": ["noisy failed: RuntimeError: <no>"],
        "chart": chart,
        "pictures": [chart],
        "runs": {0: "0123456789"},
    }
    report.write_report(comparison, columns, rows, summary, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page and "<script" not in page
    assert "&lt;no&gt;" in page and "<no>" not in page and "01234567<" in page
    assert "steps: 2" in page and "as in config" in page and "where splits share data" in page


def test_nothing_is_drawn_without_a_pair(file: Path, tmp_path: Path) -> None:
    comparison = given(file)
    columns = summarise(rows_of(plain=[0.1]), list(comparison.variants), "plain", {"rank1": "max"})
    assert not report.draw_differences(comparison, columns, tmp_path / "differences.png")


def test_the_example_trainable_illustrates(file: Path) -> None:
    assert isinstance(given(file).implementation, Illustrating)


# The command


@pytest.mark.faults
@pytest.mark.sweep
def test_a_comparison_is_interrupted_continued_enlarged_and_scored_again(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE.replace("seeds: [0, 7]", "seeds: [0]").replace("y: [0, 1]", "y: [0]"))
    marker = ["--set", f"config.marker={tmp_path}/marker", "--set", "variants={plain: {}, quick: {steps: 2}}"]
    options = [*marker, "--storage", str(tmp_path / "store"), "--set", "config.seconds=1"]
    command_line.interrupt("compare", file, *options, epochs=1)

    larger = [*options, "--set", "splits.y=[0, 1]", "--set", "variants.flaky={steps: 3, fault: once}"]
    second = compare(file, *larger)
    assert second.returncode == 1, second.stdout + second.stderr
    assert "continuing: 2 trials are known, 6 are left to run" in second.stdout
    assert "out of reach, this once" in second.stdout and "Traceback" not in second.stderr
    assert "the same command tries what failed again" in second.stdout
    assert "means so far: test/parabola/score plain" in second.stdout

    third = compare(file, *larger, "--set", "metrics=[test/parabola/scroe]")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "'test/parabola/scroe'; did you mean 'test/parabola/score'?" in third.stdout
    folder = tmp_path / "store" / "parabola"
    rows = json.loads((folder / "results.json").read_text())
    assert [row["state"] for row in rows] == ["complete"] * 6
    assert len({row["number"] for row in rows}) == 6
    (flaky,) = [row for row in rows if row["number"] == 6]  # the others are trials 0 to 5
    assert flaky["variant"] == "flaky"
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        f"ends-of-{name}.png" for name in ("plain", "quick", "flaky")
    }
    assert (folder / "report.html").read_text().count("data:image/png") == 4

    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("parabola").experiment_id])
    (parent,) = [run for run in runs if run.data.tags["run.kind"] == "comparison"]
    assert parent.info.status == "FINISHED" and "| flaky |" in parent.data.tags["mlflow.note.content"]
    assert "quick - plain/test/parabola/score" in parent.data.metrics
    assert len(client.list_artifacts(parent.info.run_id, "pictures")) == 3
    trials = {int(run.data.tags["trial.number"]): run for run in runs if "trial.number" in run.data.tags}
    assert sorted(trials) == [0, 1, 2, 3, 4, 5, 6]
    for row in rows:
        found = trials[row["number"]]
        assert found.data.metrics["test/parabola/score"] == row["scores"]["test/parabola/score"]
        assert found.data.params["variant"] == row["variant"]
        steps = [point.step for point in client.get_metric_history(found.info.run_id, "val/score")]
        assert steps == ([] if row is flaky else [1, 2, 3, 4])  # what was only scored trained no epoch

    fourth = compare(file, *larger, "--set", "metrics=[test/parabola/scroe]")
    assert fourth.returncode == 0 and "is finished" in fourth.stdout and "± " in fourth.stdout
    changed = command_line.refused("compare", file, *larger, "--set", "variants.flaky.steps=4")
    assert "variants.flaky: steps: 3 → 4" in changed


def test_help_shows_examples() -> None:
    done = compare(Path("--help"))
    assert done.returncode == 0
    assert "python -m orchestrator.compare search_spaces/claim.yaml" in done.stdout


def test_bad_input_is_one_line_and_writes_nothing(file: Path, tmp_path: Path) -> None:
    store = ["--storage", str(tmp_path / "store")]
    assert "fault: data is at fault" in command_line.refused(
        "compare", file, *store, "--set", "variants.quick.fault=data"
    )
    assert "--trials" in command_line.refused("compare", file, *store, "--trials", "3")
    assert not (tmp_path / "store").exists()
