"""The best trial's model becomes a version of the registry, and an alias moves to it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import pytest
import yaml
from boto3.exceptions import S3UploadFailedError
from mlflow.entities import RunInfo
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.errors import InputError, TrackingError
from orchestrator.tracking.alias import is_lease
from orchestrator.tracking.model_card import of_version
from orchestrator.tracking.model_registry import RegisteredModel, check_registry
from orchestrator.tracking.promotion import Record, records_of
from orchestrator.tracking.registry import Reference, Registry
from orchestrator.tracking.tracker import Tracker
from tests.support.registered_models import exported, finish_sweep, register_best
from tests.support.servers import MlflowServer


@pytest.fixture
def export(tmp_path: Path) -> dict[str, Any]:
    return exported(tmp_path)


@dataclass
class Registered:
    """The models of two sweeps, and what registering that of the first again gave."""

    client: mlflow.MlflowClient
    first: RegisteredModel
    second: RegisteredModel
    worse: RegisteredModel
    again: RegisteredModel
    run_before: RunInfo
    run_after: RunInfo
    logged_models: int
    decision: dict[str, Any]


@pytest.fixture(scope="module")
def registered(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    uri, export = mlflow_server.uri, exported(tmp_path_factory.mktemp("export"))
    with finish_sweep(uri, "once-a") as tracker:
        client = tracker.client
        before = client.get_run(tracker.run_id(0)).info
        first = register_best(tracker, export, 0.6)
        after = client.get_run(tracker.run_id(0)).info
        logged_models = len(client.search_logged_models([tracker.experiment_id]))
    with finish_sweep(uri, "once-b") as tracker:
        second = register_best(tracker, export, 0.75)
        file = client.download_artifacts(tracker.run_id(0), f"registry/{second.name}-v2-champion.json")
        decision = json.loads(Path(file).read_text())
    with finish_sweep(uri, "once-c") as tracker:
        worse = register_best(tracker, export, 0.7)
    with Tracker(uri, "alignment", "alignment", "once-a") as tracker:  # the first sweep, rerun
        again = register_best(tracker, export, 0.6)
    return Registered(client, first, second, worse, again, before, after, logged_models, decision)


def record_of(registered: Registered, model: RegisteredModel) -> Record:
    version = registered.client.get_model_version(model.name, str(model.version))
    (record,) = records_of(version, "champion")
    return record


def test_first_model_becomes_version_1_with_the_alias(registered: Registered) -> None:
    first = registered.first
    assert (first.version, first.alias, first.created) == (1, "champion", True)
    assert first.uri == f"models:/{first.name}/1"


def test_registration_leaves_the_run_of_the_trial_as_it_was(registered: Registered) -> None:
    before, after = registered.run_before, registered.run_after
    assert (after.status, after.end_time) == (before.status, before.end_time)


def test_registered_model_lies_in_the_experiment_of_its_run(registered: Registered) -> None:
    assert registered.logged_models == 1


def test_second_model_becomes_version_2(registered: Registered) -> None:
    assert (registered.second.version, registered.second.created) == (2, True)


def test_decision_is_kept_as_a_file_of_the_run(registered: Registered) -> None:
    decision = registered.decision
    assert (decision["champion"], decision["verdict"], decision["metric"]) == (1, "promoted", "rank1")
    assert decision["targets"]["walkers"]["difference"] == pytest.approx(0.15)
    assert decision["record"]["data"] == {"walkers": "d1"}


def test_better_version_takes_the_alias(registered: Registered) -> None:
    record = record_of(registered, registered.second)
    assert (record.verdict, record.champion, record.by["sweep"]) == ("promoted", 1, "alignment")
    assert record.reason.startswith("better than version 1: rank1 0.75 against 0.6")
    assert registered.second.promoted and registered.second.reason == record.reason


def test_worse_version_is_the_challenger_and_says_why(registered: Registered) -> None:
    worse, record = registered.worse, record_of(registered, registered.worse)
    assert (record.verdict, record.champion) == ("declined", 2) and not worse.promoted
    assert "rank1 on walkers changes by -0.05 from version 2" in str(worse)
    aliases = registered.client.get_registered_model(worse.name).aliases
    assert aliases == {"champion": "2", "challenger": "3"}


def test_decisions_leave_no_lease(registered: Registered) -> None:
    names = [model.name for model in registered.client.search_registered_models()]
    assert registered.first.name in names and not any(map(is_lease, names))


def test_page_of_the_logged_model_names_version_and_data(registered: Registered) -> None:
    version = registered.client.get_model_version(registered.second.name, "2")
    model = registered.client.get_logged_model(version.source.removeprefix("models:/"))
    links = json.loads(model.tags["mlflow.modelVersions"])
    assert [(link["name"], str(link["version"])) for link in links] == [(version.name, "2")]
    points = {point.key: point.dataset_name for point in model.metrics}
    assert points["test/walkers/rank1"] == "walkers"
    inputs = registered.client.get_run(version.run_id).inputs.dataset_inputs
    assert [each.dataset.name for each in inputs] == ["walkers"]


def test_registration_repeated_finds_its_version(registered: Registered) -> None:
    assert (registered.again.version, registered.again.created) == (1, False)
    name = registered.first.name
    assert len(registered.client.search_model_versions(f"name = '{name}'")) == 3
    assert registered.again.promoted and registered.again.reason.startswith("no version had this alias")
    assert registered.again.decision == registered.first.decision is not None


def test_alias_stays_with_the_best_model(registered: Registered) -> None:
    champion = registered.client.get_model_version_by_alias(registered.first.name, "champion")
    assert int(champion.version) == 2


def test_registered_version_has_few_tags_and_a_page(registered: Registered) -> None:
    champion = registered.client.get_model_version_by_alias(registered.first.name, "champion")
    tags = champion.tags
    assert tags["data.walkers"] == "d1" and tags["trainable"] == "a:B" and tags["trial.number"] == "0"
    assert tags["decision"] == "promoted" and tags["digest"].startswith("sha256:") and len(tags) <= 9
    for line in ("| test/walkers/rank1 | 0.75 |", "| rnn.cell | gru |", "**Promoted** for the alias"):
        assert line in champion.description


def test_registered_model_loads_without_this_project(
    sqlite_uri: str, export: dict[str, Any], tmp_path: Path
) -> None:
    with finish_sweep(sqlite_uri, "load") as tracker:
        registered = register_best(tracker, export, 0.6)
    code = "import sys, mlflow, numpy as np\n"
    code += "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
    code += "print(model.predict(np.full((2, 5, 8, 4, 3), 10, np.uint8)).tolist())\n"
    code += "assert 'orchestrator' not in sys.modules"
    environment = {
        "PATH": "/usr/bin:/bin",
        "MLFLOW_TRACKING_URI": sqlite_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, registered.uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]")
    described = yaml.safe_load(mlflow.artifacts.load_text(f"{registered.uri}/MLmodel"))
    assert "model_id" in described and "artifact_path" not in described  # which is a path of this machine


def test_registration_that_was_interrupted_is_completed(
    sqlite_uri: str, export: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with finish_sweep(sqlite_uri, "cut") as tracker:

        def cut(*_: object) -> NoReturn:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", cut)
            with pytest.raises(TrackingError, match=r"^registry: reid-.* disk full$"):
                register_best(tracker, export, 0.6)
        registered = register_best(tracker, export, 0.6)
        assert (registered.version, registered.created) == (1, False)
        assert int(tracker.client.get_model_version_by_alias(registered.name, "champion").version) == 1


def test_changed_alias_is_decided_about_and_taken(sqlite_uri: str, export: dict[str, Any]) -> None:
    with finish_sweep(sqlite_uri, "alias") as tracker:
        for alias in ("champion", "staging"):
            registered = register_best(tracker, export, 0.6, alias)
            assert registered.promoted and f"version 1, alias {alias}: no version had this alias" in str(
                registered
            )
        aliases = tracker.client.get_registered_model(registered.name).aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 1, "staging": 1}


def test_rerun_says_what_the_gate_said_also_after_a_promotion_by_hand(
    sqlite_uri: str, export: dict[str, Any]
) -> None:
    with finish_sweep(sqlite_uri, "hand-a") as tracker:
        register_best(tracker, export, 0.6)
    with finish_sweep(sqlite_uri, "hand-b") as tracker:
        worse = register_best(tracker, export, 0.5)
        Registry(sqlite_uri, "test").promote(Reference(worse.name, None, 2), "champion", gate=False)
        again = register_best(tracker, export, 0.5)
        kept = f"registry/{worse.name}-v2-champion.json"
        tracker.client.log_text(tracker.run_id(0), "{", kept)
        damaged = register_best(tracker, export, 0.5)
    assert not again.promoted and str(again) == str(worse) == str(damaged)
    assert again.decision == worse.decision is not None and damaged.decision is None


def test_version_of_the_first_release_keeps_its_decision(sqlite_uri: str, export: dict[str, Any]) -> None:
    with finish_sweep(sqlite_uri, "first") as tracker:
        client, name = tracker.client, "reid-first"
        tags = {"sweep.id": "first", "trial.number": "0", "decision": "promoted"}
        client.create_registered_model(name)
        client.create_model_version(name, "s3://nowhere/model", tags=tags)
        registered = register_best(tracker, export, 0.6)
        assert str(registered) == "reid-first version 1, alias champion"
        assert client.get_registered_model(name).aliases == {}


@pytest.mark.parametrize("place", ["artifacts", "data_path"])
def test_card_of_the_trainable_is_on_the_page(sqlite_uri: str, tmp_path: Path, place: str) -> None:
    (tmp_path / "README.md").write_text("# Made for tests\n" + "A long line of it.\n" * 500)
    (tmp_path / "model.py").write_text("def _load_pyfunc(path):\n    return print\n")
    export = {"loader_module": "model", "code_paths": [str(tmp_path / "model.py")], "pip_requirements": []}
    if place == "artifacts":
        export = exported(tmp_path)
        export["artifacts"]["card"] = str(tmp_path / "README.md")
    else:
        export["data_path"] = str(tmp_path)
    with finish_sweep(sqlite_uri, f"card{place}") as tracker:
        name = register_best(tracker, export, 0.6).name
        page = tracker.client.get_model_version(name, "1").description
    assert "# Made for tests\nA long line of it.\n" in page
    assert len(page) <= 5000 and "This page is cut, because MLflow takes no longer one" in page


@pytest.mark.parametrize(
    ("card", "last"),
    [
        ("a word\n" * 900, "a word"),
        ("x" * 9000, "its run"),
        ("text\n```python\n" + "line\n" * 1200 + "```\n", "text"),
    ],
    ids=["lines", "one line", "code"],
)
def test_page_is_cut_at_the_end_of_a_line_outside_of_code(card: str, last: str) -> None:
    page = page_with(card)
    kept, _, rest = page.partition("\n\nThis page is cut")
    assert len(page) <= 5000 and rest.endswith("the files of the version.")
    assert last in kept.splitlines()[-1] and "```" not in kept


def test_page_that_fits_is_complete() -> None:
    assert page_with("end").endswith("\nend")


def page_with(card: str) -> str:
    empty: dict[str, Any] = {"scores": {}, "parameters": {}, "data_sets": [], "records": []}
    return of_version(job="sweep", trial="0", run="", job_run="", text=card, **empty)


def test_upload_that_was_not_registered_is_found_again(
    uri: str, export: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise MlflowException("no permission", PERMISSION_DENIED)

    with finish_sweep(uri, f"refused{uri[:4]}") as tracker:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(mlflow.MlflowClient, "create_model_version", refuse)
                with pytest.raises(TrackingError, match="no permission"):
                    register_best(tracker, export, 0.6)
        registered = register_best(tracker, export, 0.6)
        run = f"source_run_id = '{tracker.run_id(0)}'"
        (upload,) = tracker.client.search_logged_models([tracker.experiment_id], run)
        version = tracker.client.get_model_version(registered.name, str(registered.version))
        assert registered.created and upload.model_id in str(version.source)


def test_upload_whose_files_are_gone_is_uploaded_again(uri: str, export: dict[str, Any]) -> None:
    with finish_sweep(uri, f"gone{uri[:4]}") as tracker:
        first = register_best(tracker, export, 0.6)
        version = tracker.client.get_model_version(first.name, str(first.version))
        gone = str(version.source).removeprefix("models:/")
        files = tracker.client.get_logged_model(gone).artifact_location
        tracker.client.delete_model_version(first.name, str(first.version))
        store = get_artifact_repository(files, uri)
        for file in store.list_artifacts():
            store.delete_artifacts(file.path)
        assert not store.list_artifacts()
        again = register_best(tracker, export, 0.6)
        version = tracker.client.get_model_version(again.name, str(again.version))
        assert again.created and gone not in str(version.source)
    loaded = mlflow.pyfunc.load_model(again.uri)
    assert loaded.metadata.flavors


def test_version_of_a_trial_that_was_lost_is_not_that_of_its_number(
    sqlite_uri: str, export: dict[str, Any]
) -> None:
    with finish_sweep(sqlite_uri, "restored") as tracker:
        lost = register_best(tracker, export, 0.6)
        assert tracker.set_aside_all_but({0}) == [] and tracker.set_aside_all_but({1}) == [0]
    with finish_sweep(sqlite_uri, "restored") as tracker:  # the same trial number again
        again = register_best(tracker, export, 0.5)
        assert again.created and again.version == lost.version + 1
        assert tracker.set_aside_all_but({0}) == []


def test_registration_of_a_trial_without_run_is_refused(sqlite_uri: str, export: dict[str, Any]) -> None:
    tracker = Tracker(sqlite_uri, "alignment", "alignment", "empty")
    with tracker, pytest.raises(TrackingError, match="no run of trial 0"):
        register_best(tracker, export, 0.6)


@pytest.mark.filterwarnings("ignore:.*Add type hints")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"python_model": lambda model_input: [1], "artifacts": None},
            r"pip_requirements.* must be specified",
        ),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_export_that_mlflow_refuses_is_told(
    changes: dict[str, Any], line: str, sqlite_uri: str, export: dict[str, Any]
) -> None:
    refused = {"python_model": export["python_model"], **changes}
    expected = rf"^registry: MLflow refuses the model that the trainable exports \(.*{line}.*\); correct its"
    with finish_sweep(sqlite_uri, "refused") as tracker, pytest.raises(TrackingError, match=expected):
        register_best(tracker, refused, 0.6)


def test_files_that_a_store_refuses_are_told(
    sqlite_uri: str, export: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(**_: object) -> NoReturn:
        raise S3UploadFailedError("Access Denied")

    with finish_sweep(sqlite_uri, "denied") as tracker:
        monkeypatch.setattr(Model, "log", upload)
        with pytest.raises(TrackingError, match=r"files of the model cannot be written: Access Denied"):
            register_best(tracker, export, 0.6)


def test_registration_waits_for_a_server_that_is_away(
    export: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        MlflowServer(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts") as server,
        finish_sweep(server.uri, "away") as tracker,
    ):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        server.kill()
        with pytest.raises(TrackingError, match=r"^registry: reid-away at .*: connection refused$") as raised:
            register_best(tracker, export, 0.6)
        assert raised.value.unreachable
        server.start()
        assert register_best(tracker, export, 0.6).version == 1


def test_check_registry_leaves_a_model_without_tags(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "registry check") as tracker:
        for _ in range(2):
            check_registry(tracker, "checked-reid")
        model = tracker.client.get_registered_model("checked-reid")
        assert "Versions of **checked-reid**" in model.description
        assert model.tags == {} and tracker.client.search_model_versions("name = 'checked-reid'") == []


def test_check_registry_of_another_family_is_refused(sqlite_uri: str, export: dict[str, Any]) -> None:
    with finish_sweep(sqlite_uri, "family") as tracker:
        name = register_best(tracker, export, 0.6).name
        check_registry(tracker, name, "champion", "a:B")
        line = f"registry.model: version 1 of {name} is a model of a:B, and not of c:D"
        with pytest.raises(InputError, match=line):
            check_registry(tracker, name, "champion", "c:D")


def test_check_registry_of_another_team_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that may read a model and not write it. The store of this test knows no logins."""

    def refuse(*_: Any) -> NoReturn:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    with Tracker(uri, "alignment", "alignment", "other team") as tracker:
        tracker.client.create_registered_model("their-reid")
        monkeypatch.setattr(tracker.client, "set_registered_model_tag", refuse)
        with pytest.raises(
            TrackingError, match=r"^registry: 'their-reid' cannot be written .*Permission denied"
        ):
            check_registry(tracker, "their-reid")
