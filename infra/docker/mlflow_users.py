"""Create the logins of an MLflow server: the name of a file is the user, its content the password.

``python mlflow_users.py http://mlflow:5000 FOLDER`` logs in as the administrator, whose password is in
MLFLOW_AUTH_ADMIN_PASSWORD. Run it again after a password has changed. Every user may create experiments and
models, and owns them. ``reader`` may read all of them. ``prometheus`` is an administrator, because MLflow
shows its metrics to administrators only.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

ADMINISTRATORS = {"prometheus"}
READERS = {"reader"}
READABLE = ("experiment", "registered_model")


def make(client: AuthServiceClient, user: str, password: str) -> None:
    """Create one login, or update its password and its permissions."""
    if not _is_new(lambda: client.create_user(user, password)):
        client.update_user_password(user, password)
    client.update_user_admin(user, user in ADMINISTRATORS)
    if user in READERS:
        for kind in READABLE:
            _is_new(functools.partial(client.grant_user_permission, user, kind, "*", "READ"))


def _is_new(make: Callable[[], object]) -> bool:
    """Return whether the object did not exist before; ``make`` creates it."""
    try:
        make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def main(server: str, folder: Path) -> int:
    """Run the command and return its exit code."""
    os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    # Kubernetes mounts a Secret with hidden entries beside its keys.
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        print(
            f"{folder}: contains no logins; expected one file per login, named after the user",
            file=sys.stderr,
        )
        return 2
    client = AuthServiceClient(server)
    for file in files:
        make(client, file.name, file.read_text().strip())
        print(f"{file.name} can log in", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
