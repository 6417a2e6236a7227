"""The driver of a comparison: what it checks before anything is trained."""

from pathlib import Path

import pytest

from orchestrator.config.comparison import read_comparison
from orchestrator.console.progress import Progress
from orchestrator.drivers.comparison import ComparisonDriver
from orchestrator.errors import InputError
from orchestrator.interrupt import Interrupt
from tests.support.sweep_files import TRAINABLE, write_comparison

COMPARABLE = "tests.support.example_trainable:ComparableTrainable"


def check(folder: Path, trainable: str, *metrics: str) -> None:
    """Check a comparison with these metrics."""
    file = write_comparison(folder, trainable=trainable, metrics=list(metrics))
    ComparisonDriver(read_comparison(file, environment={}), Progress(), Interrupt()).check(new=True)


def test_metrics_of_trials_and_targets_are_accepted(tmp_path: Path) -> None:
    check(tmp_path, COMPARABLE, "val/score", "val/score/error", "test/parabola/score")


@pytest.mark.parametrize(
    ("metric", "nearest"),
    [("val/scor", "val/score"), ("test/parabola/scroe", "test/parabola/score"), ("mAP", "")],
)
def test_metric_that_no_variant_has_is_refused(metric: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^metrics\.1: no variant has the score '{metric}'.*{nearest}"):
        check(tmp_path, COMPARABLE, "val/score", metric)


def test_scores_of_a_trainable_that_does_not_name_them_are_accepted(tmp_path: Path) -> None:
    check(tmp_path, TRAINABLE, "test/anything/score")
    with pytest.raises(InputError, match=r"metrics\.0"):
        check(tmp_path, TRAINABLE, "val/scor")
