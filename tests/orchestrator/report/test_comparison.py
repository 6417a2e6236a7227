"""What a comparison shows: tables for the terminal and for MLflow, its chart, and its report."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.config.comparison import Comparison
from orchestrator.report import comparison as report
from orchestrator.study.statistics import Column, Row, summarise
from tests.support.sweep_files import load_comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return load_comparison(tmp_path)


def trained(comparison: Comparison, metrics: list[str]) -> tuple[list[Row], list[Column]]:
    """Return trials with scores, of which the last one failed, and their summary."""
    rows = [
        Row(
            cell.variant,
            dict(cell.grid_point),
            "complete",
            number,
            "",
            dict.fromkeys(metrics, 0.1 * (number % 5)),
        )
        for number, cell in enumerate(comparison.cells[:-1])
    ]
    rows.append(Row("noisy", dict(comparison.cells[-1].grid_point), "failed", 11, "RuntimeError: <no>"))
    modes = {metric: comparison.mode(metric) for metric in metrics}
    return rows, summarise(rows, list(comparison.variants), comparison.baseline, modes)


SIX_METRICS = [f"test/{name}/{metric}" for name in ("walkers", "b") for metric in ("rank1", "rank5", "mAP")]


def test_terminal_tables_of_six_metrics_fit_plain_output(comparison: Comparison) -> None:
    _, columns = trained(comparison, SIX_METRICS)
    console = Console(width=120, record=True)
    for table in report.terminal_tables(comparison, columns):
        console.print(table)
    text = console.export_text()
    assert "test/walkers" in text and "test/b" in text and "…" not in text
    assert re.search(r"noisy +│ +3 │ +0\.\d+ ± 0\.\d+", text)
    assert re.search(r"0\.\d+ ± 0\.\d+ \*", text)


def test_table_of_one_variant_compares_nothing(comparison: Comparison) -> None:
    alone = comparison.model_copy(update={"variants": {"plain": {}}})
    rows, columns = trained(alone, ["test/b/mAP"])
    console = Console(width=120, record=True)
    console.print(*report.terminal_tables(alone, columns))
    text = console.export_text()
    assert re.search(r"plain +│ +\d+ │ +0\.\d+ ± 0\.\d+ +│", text)
    assert "difference" not in text and "*" not in text
    assert "marked" not in " ".join(report.explain_table(alone, columns, rows))


def test_explanation_counts_pairs_and_failed_trials(comparison: Comparison) -> None:
    rows, columns = trained(comparison, SIX_METRICS)
    text = " ".join(report.explain_table(comparison, columns, rows))
    assert "2 splits x 2 seeds" in text and "4 pairs" in text and "1 of 12 trials failed" in text
    assert re.search(
        r"corrected for the 2 differences .* true difference of \d+\.\d+ in test/walkers/rank1, ", text
    )
    assert "where splits share data" in text and "not how it would be on a new population" in text


def test_markdown_table_has_a_row_for_each_variant(comparison: Comparison) -> None:
    _, columns = trained(comparison, SIX_METRICS)
    rows = report.markdown_table(comparison, columns).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| plain", "| quick", "| noisy"]


@pytest.fixture
def page(comparison: Comparison, tmp_path: Path) -> str:
    rows, columns = trained(comparison, ["test/walkers/rank1", "test/b/rank1"])
    chart = tmp_path / "differences.png"
    assert report.draw_differences(comparison, columns, chart)
    assert chart.read_bytes()[:4] == b"\x89PNG"
    summary: dict[str, Any] = {
        "job_id": "feedc0de",
        "data_sets": [],
        "commands": {"MLflow": "mlflow ui"},
        "notes": ["noisy failed: RuntimeError: <no>"],
        "chart": chart,
        "pictures": [chart],
        "runs": {0: "0123456789"},
    }
    report.write_report(comparison, columns, rows, summary, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_report_needs_no_other_file(page: str) -> None:
    assert page.count("data:image/png;base64,") == 2 and "http" not in page and "<script" not in page


def test_report_shows_reasons_as_text_and_short_run_ids(page: str) -> None:
    assert "&lt;no&gt;" in page and "<no>" not in page and "01234567<" in page


def test_report_shows_settings_and_explanation(page: str) -> None:
    assert "steps: 2" in page and "as in config" in page and "where splits share data" in page


def test_differences_without_a_pair_are_not_drawn(comparison: Comparison, tmp_path: Path) -> None:
    rows = [Row("plain", {"split": 0}, "complete", scores={"rank1": 0.1})]
    columns = summarise(rows, list(comparison.variants), "plain", {"rank1": "max"})
    assert not report.draw_differences(comparison, columns, tmp_path / "differences.png")
    assert not (tmp_path / "differences.png").exists()
