"""The driver of a comparison: what it checks before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.comparison import read_comparison
from orchestrator.console.progress import Progress
from orchestrator.drivers.comparison import ComparisonDriver
from orchestrator.errors import InputError
from orchestrator.interrupt import Interrupt
from tests.support.example_trainable import ComparableTrainable, DataError, ExampleConfig
from tests.support.sweep_files import TRAINABLE, write_comparison

COMPARABLE = "tests.support.example_trainable:ComparableTrainable"


class PartlyTrainable(ComparableTrainable):
    """A trainable that reports the metric rate with several steps alone."""

    def check(self, config: ExampleConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Refuse the metric of one step."""
        if "rate" in metrics and config.steps == 1:
            raise DataError("steps: one step has no rate")


def check(folder: Path, trainable: str, *metrics: str, **changes: Any) -> None:
    """Check a comparison with these metrics."""
    file = write_comparison(folder, trainable=trainable, metrics=list(metrics), **changes)
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


def test_metric_that_one_variant_has_is_accepted(tmp_path: Path) -> None:
    check(tmp_path, f"{__name__}:PartlyTrainable", "rate")  # of the variant quick
    with pytest.raises(InputError, match=r"^config\.steps: one step has no rate"):
        check(tmp_path, f"{__name__}:PartlyTrainable", "rate", variants={"plain": None, "noisy": {"x": 1.0}})


def test_scores_of_a_trainable_that_does_not_name_them_are_accepted(tmp_path: Path) -> None:
    check(tmp_path, TRAINABLE, "test/anything/score")
    with pytest.raises(InputError, match=r"metrics\.0"):
        check(tmp_path, TRAINABLE, "val/scor")
