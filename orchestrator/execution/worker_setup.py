"""Setup of every Ray worker process. It imports little, because a trial waits for it."""

import os

import ray

UMASK = "REID_UMASK"
"""Environment variable with the umask, in octal, of the process that started the cluster."""


def set_up_worker() -> None:
    """Set RAY_ADDRESS to the cluster of this worker, for Ray's tools, and the umask of the user.

    With a second Ray on the host, Ray's cleaner of the placement groups of stopped trials would not know
    which cluster to ask, and the next trial would wait forever. Processes of a local cluster start with a
    umask that hides Ray's own files from other users; the files of a job follow the user's.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    if UMASK in os.environ:
        os.umask(int(os.environ[UMASK], 8))
