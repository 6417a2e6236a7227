"""Many sweeps that finish at once, some killed or suspended: the best model is champion, once each."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.alias import Alias, is_lease
from orchestrator.tracking.promotion import all_versions, records_of
from tests.support.paths import ROOT
from tests.support.servers import MlflowServer, Postgres

pytestmark = pytest.mark.faults
PROMOTERS = int(os.environ.get("FAULT_PROMOTERS", "50"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
PATIENCE = 10.0


@pytest.fixture(params=["sqlite", "server on PostgreSQL"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mlflow.db"
        return
    with (
        Postgres(tmp_path / "postgres") as postgres,
        MlflowServer(tmp_path / "mlflow", postgres.uri, tmp_path / "artifacts") as server,
    ):
        yield server.uri


def test_promoters_at_once_leave_the_best_as_champion(uri: str) -> None:
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("reid")
    scores = random.Random(SEED).sample(range(1000), PROMOTERS)
    for score in scores:
        client.create_model_version("reid", "s3://nowhere/model", tags={"score": str(score)})
    command = [sys.executable, "-m", "tests.support.promoters", uri, "reid"]
    done = subprocess.run(
        [*command, str(PROMOTERS), str(SEED), str(PATIENCE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr
    ends = {int(line.split()[0]): line.partition(" ")[2] for line in done.stdout.splitlines()}
    print(sorted(ends.values()))
    assert len(ends) == PROMOTERS and not any(end.endswith("exit 1") for end in ends.values()), done.stderr
    state = Alias(client, "reid", "champion", PATIENCE).settle()

    records = {
        int(version.version): records_of(version, "champion") for version in all_versions(client, "reid")
    }
    assert all(len(found) <= 1 for found in records.values()), "a version has one record"
    alive = [number for number, end in ends.items() if end != "killed"]
    assert all(len(records[number]) == 1 for number in alive), "who was not killed has a record"
    decided = [number for number, found in records.items() if found]
    best = max(decided, key=lambda number: scores[number - 1])
    assert state.named == best and records[best][0].verdict == "promoted"
    numbers = [found[0].number for found in records.values() if found]
    assert len(set(numbers)) == len(numbers), "changes have different numbers"
    assert not any(is_lease(model.name) for model in client.search_registered_models())
