"""Setup of every Ray worker process. It imports little, because a trial waits for it."""

import os

import ray


def find_own_cluster() -> None:
    """Set RAY_ADDRESS to the cluster of this worker, for Ray's tools.

    With a second Ray on the host, Ray's cleaner of the placement groups of stopped trials would not know
    which cluster to ask, and the next trial would wait forever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
