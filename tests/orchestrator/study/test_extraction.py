"""A comparison of the best trials of a sweep, through the command that writes its file."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import compare
from orchestrator.config.comparison import Comparison, read_comparison
from orchestrator.config.sections import sqlite_address
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from tests.support.example_trainable import ExampleConfig
from tests.support.paths import ROOT
from tests.support.state_archive import unpack
from tests.support.studies import run_trial
from tests.support.sweep_files import load_sweep

SCORES = (-3.0, -1.0, -2.0)


def fill(folder: Path, scores: tuple[float, ...] = SCORES, **changes: Any) -> Path:
    """Write a sweep with one complete trial for each score; return its folder."""
    sweep = load_sweep(folder, config={"y": 0.5, "epochs": 1}, **changes)
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()):
        study = SearchStudy(sweep, directory)
        for score in scores:
            run_trial(study, [score])
    return Path(sweep.storage) / sweep.name


def written(file: Path, source: str, capsys: pytest.CaptureFixture[str]) -> Comparison:
    """Write a comparison file; return what it says."""
    assert compare.main([str(file), "--from", source]) == 0
    assert f"run it with: python -m orchestrator.compare {file}" in capsys.readouterr().out.replace("\n", " ")
    return read_comparison(file, environment={})


def test_variants_are_the_best_trials_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = written(tmp_path / "best.yaml", f"{fill(tmp_path)}:2", capsys)
    assert list(comparison.variants) == ["trial-0001", "trial-0002"]
    assert comparison.seeds == (0, 1, 2) and comparison.name == "parabola-best"
    assert comparison.metrics == ("val/score",)


def test_fewer_trials_than_asked_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path / "best.yaml"), "--from", f"{fill(tmp_path)}:9"]) == 0
    assert "complete trials that differ, not 9" in capsys.readouterr().out


def test_variant_has_the_config_of_its_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = fill(tmp_path, search={"x": {"choice": [2.5]}, "noise.width": {"uniform": [0.2, 0.3]}})
    comparison = written(tmp_path / "best.yaml", str(sweep), capsys)
    config = comparison.cell_config(comparison.cells[0])
    assert isinstance(config, ExampleConfig)
    assert (config.y, config.epochs, config.x) == (0.5, 1, 2.5)
    assert config.noise is not None and 0.2 <= config.noise.width <= 0.3


def test_file_has_only_what_differs_from_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resources = {"workers": 2, "report_timeout": "12d30s"}
    comparison = written(tmp_path / "best.yaml", str(fill(tmp_path, resources=resources)), capsys)
    assert comparison.config == {"y": 0.5, "epochs": 1}
    assert (comparison.resources.workers, comparison.resources.report_timeout) == (2, 12 * 86400 + 30)
    assert "gpus" not in (tmp_path / "best.yaml").read_text()


def test_equal_trials_are_one_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = fill(tmp_path, search={"x": {"choice": [2.5]}, "seed": {"int": [0, 9]}})
    comparison = written(tmp_path / "best.yaml", f"{sweep}:3", capsys)
    assert comparison.variants == {"trial-0001": {"x": 2.5}}


def test_pareto_set_gives_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = fill(tmp_path, objective=[{"metric": "val/score"}, {"metric": "train/loss"}])
    comparison = written(tmp_path / "best.yaml", f"{sweep}:3", capsys)
    assert list(comparison.variants) == ["trial-0001"] and comparison.metrics == ("val/score", "train/loss")


def test_sweep_of_the_first_release_gives_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "support"))  # where its trainable has its dotted path
    unpack(ROOT / "tests" / "assets" / "state-0.1.0.tar.xz", tmp_path)
    comparison = written(tmp_path / "best.yaml", str(tmp_path / "storage" / "finished"), capsys)
    assert len(comparison.variants) == 1


def test_recorded_config_that_is_not_valid_any_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = fill(tmp_path)
    record = json.loads((sweep / "sweep.json").read_text())
    record["resolved"]["config"]["steps"] = 99
    (sweep / "sweep.json").write_text(json.dumps(record))
    assert compare.main([str(tmp_path / "best.yaml"), "--from", str(sweep)]) == 2
    error = capsys.readouterr().err
    assert (
        "the recorded config is not valid in this version: config.steps" in error and error.count("\n") == 1
    )


def test_comparison_is_kept_where_the_sweep_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = written(tmp_path / "best.yaml", str(fill(tmp_path)), capsys)
    assert comparison.storage == str(tmp_path / "store")
    assert comparison.tracking.uri == sqlite_address(f"{comparison.storage}/mlflow.db")


@pytest.mark.parametrize(
    ("scores", "arguments", "line"),
    [
        ((), [], "has no complete trial that could be the best"),
        (SCORES, ["--dry-run"], "--from: it only writes the file"),
        (SCORES, ["--wait"], "--from: it only writes the file"),
        (SCORES, ["--storage", "/elsewhere"], "already says where it is kept"),
    ],
)
def test_source_that_gives_no_comparison_is_refused(
    scores: tuple[float, ...],
    arguments: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "best.yaml"
    assert compare.main([str(file), "--from", str(fill(tmp_path, scores)), *arguments]) == 2
    assert line in capsys.readouterr().err and not file.exists()


def test_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.yaml"
    file.write_text("mine")
    assert compare.main([str(file), "--from", str(fill(tmp_path))]) == 2
    assert "this file exists" in capsys.readouterr().err and file.read_text() == "mine"


def test_source_of_no_trials_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path / "best.yaml"), "--from", "alignment:0"]) == 2
    assert "should be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alignment", ("alignment", 1)),
        ("alignment:3", ("alignment", 3)),
        ("s3://bucket/sweeps/alignment", ("s3://bucket/sweeps/alignment", 1)),
        ("s3://bucket/sweeps/alignment:2", ("s3://bucket/sweeps/alignment", 2)),
    ],
)
def test_source_names_sweep_and_number(text: str, parts: tuple[str, int]) -> None:
    assert compare._sweep_and_top(text) == parts
