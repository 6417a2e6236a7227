"""Make the logins of an MLflow server: one for each file of a folder, called as its user, with the password.

``python mlflow_users.py http://mlflow:5000 FOLDER``, by the administrator whose password
MLFLOW_AUTH_ADMIN_PASSWORD is. Run it again after a password has changed. Everybody may make experiments and
models, and owns what he made. ``reader`` may read all. ``prometheus`` is an administrator: MLflow shows its
metrics to nobody else.
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
    """Make one login, or give it its password and its rights again."""
    if not _is_new(lambda: client.create_user(user, password)):
        client.update_user_password(user, password)
    client.update_user_admin(user, user in ADMINISTRATORS)
    if user in READERS:
        for kind in READABLE:
            _is_new(functools.partial(client.grant_user_permission, user, kind, "*", "READ"))


def _is_new(make: Callable[[], object]) -> bool:
    """Make something, unless it is there already."""
    try:
        make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def main(server: str, folder: Path) -> int:
    """Run the command; returns its exit code."""
    os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    # Kubernetes mounts a Secret with hidden entries beside its keys.
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        print(f"{folder}: holds no logins; one file for each, named as the user", file=sys.stderr)
        return 2
    client = AuthServiceClient(server)
    for file in files:
        make(client, file.name, file.read_text().strip())
        print(f"{file.name} can log in", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
