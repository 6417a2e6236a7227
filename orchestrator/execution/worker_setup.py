"""What every Ray worker process does as it starts; imports next to nothing, since a trial waits for it."""

import os

import ray


def find_own_cluster() -> None:
    """Name the worker's own cluster to Ray's tools.

    With a second Ray on the host, Ray's cleaner of the placement groups of stopped trials would not know
    which cluster to ask, and the next trial would wait for ever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
