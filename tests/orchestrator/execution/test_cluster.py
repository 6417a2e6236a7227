"""The number of trials that run at once on a cluster."""

import pytest

from orchestrator.config.sections import Resources
from orchestrator.errors import InputError
from orchestrator.execution.cluster import Cluster

SMALL = ({"CPU": 1.0, "trial_slot": 8.0},)


def fixed() -> Cluster:
    """Return a cluster that does not grow."""
    return Cluster("", None, None, SMALL)


def growing() -> Cluster:
    """Return a cluster that may add nodes."""
    return Cluster("", None, None, SMALL, joined=True)


def test_concurrency_is_what_fits_on_a_fixed_cluster() -> None:
    assert fixed().concurrency(Resources(concurrent=3)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_concurrency_is_that_of_the_file_on_a_growing_cluster(workers: int) -> None:
    assert growing().concurrency(Resources(workers=workers, concurrent=3)) == 3


def test_concurrency_too_large_trial_on_a_fixed_cluster_fails() -> None:
    with pytest.raises(InputError, match=r"2 workers of 1 CPUs do not fit .*; at most 1 fit$"):
        fixed().concurrency(Resources(workers=2, concurrent=3))


def test_concurrency_auto_on_a_growing_cluster_fails() -> None:
    with pytest.raises(InputError, match=r"if it adds nodes, set resources[.]concurrent to the number"):
        growing().concurrency(Resources(workers=2))


def test_concurrency_worker_larger_than_every_node_names_cpus() -> None:
    with pytest.raises(InputError, match=r"^resources\.cpus: 1 workers of 50 CPUs do not fit"):
        fixed().concurrency(Resources(cpus=50))
