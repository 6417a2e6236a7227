"""The command for registered models, on three versions of one model: better, then worse."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator import registry
from orchestrator.tracking.promotion import Record, champion_before
from tests.support.registered_models import exported, finish_sweep, register_best

NAME = "reid-command"


@pytest.fixture(scope="module")
def store(sqlite_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with versions 1 to 3 and rank-1 0.6, 0.75 and 0.7; to be copied before it is changed."""
    export = exported(tmp_path_factory.mktemp("export"))
    for sweep, rank1 in (("command-a", 0.6), ("command-b", 0.75), ("command-c", 0.7)):
        with finish_sweep(sqlite_uri, sweep) as tracker:
            register_best(tracker, export, rank1)
    return Path(sqlite_uri.removeprefix("sqlite:///"))


@pytest.fixture
def uri(store: Path, tmp_path: Path) -> str:
    with sqlite3.connect(store) as source, sqlite3.connect(tmp_path / "mlflow.db") as copy:
        source.backup(copy)
    return f"sqlite:///{tmp_path}/mlflow.db"


def run(capsys: pytest.CaptureFixture[str], uri: str, *arguments: str) -> tuple[int, Any]:
    """Run the command; return its exit code, and its document or its error."""
    capsys.readouterr()
    code = registry.main([*arguments, "--json", "--tracking", uri])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else captured.err


def aliases(uri: str) -> dict[str, int]:
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_list_shows_models_with_their_aliases(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "list")
    mine = {"model": NAME, "aliases": {"champion": 2, "challenger": 3}, "versions": 3}
    assert code == 0 and mine in found["models"]


def test_show_of_a_model_lists_its_versions(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    _, found = run(capsys, uri, "show", NAME)
    decisions = [(each["version"], each["decision"], each["aliases"]) for each in found["versions"]]
    assert decisions == [(1, "promoted", []), (2, "promoted", ["champion"]), (3, "declined", ["challenger"])]


def test_show_of_an_alias_has_scores_and_records(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    _, found = run(capsys, uri, "show", f"{NAME}@champion")
    assert (found["version"], found["scores"]) == (2, {"test/walkers/rank1": 0.75})
    assert found["records"][0]["by"]["sweep"] == "alignment" and found["trainable"] == "a:B"


def test_compare_says_what_the_gate_says_and_moves_nothing(
    capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    code, found = run(capsys, uri, "compare", f"{NAME}/3", f"{NAME}/1")
    assert (code, found["verdict"]) == (0, "promoted")
    assert found["overall"]["difference"] == pytest.approx(0.1)
    assert aliases(uri) == {"champion": 2, "challenger": 3}


def test_promotion_that_the_gate_declines_exits_with_1(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "promote", f"{NAME}/1")
    assert (code, found["verdict"], found["champion"]) == (1, "declined", 2)
    assert aliases(uri)["champion"] == 2


def test_promotion_without_the_gate_says_who_and_why(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "promote", f"{NAME}/1", "--no-gate", "--reason", "the others leak")
    assert (code, found["action"]) == (0, "promoted by hand")
    assert found["reason"] == "moved without the gate: the others leak"
    assert {"user", "host"} <= found["by"].keys() and found["by"][
        "command"
    ] == "orchestrator.registry promote"
    assert aliases(uri)["champion"] == 1


def test_rollback_returns_to_the_champion_before(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "rollback", NAME)
    assert (code, found["version"], found["reason"]) == (0, 1, "rolled back from version 2")
    assert aliases(uri)["champion"] == 1
    code, line = run(capsys, uri, "rollback", NAME)
    assert code == 2 and "nothing could take its place" in line and aliases(uri)["champion"] == 1


def test_history_says_who_held_the_alias_and_why(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    run(capsys, uri, "rollback", NAME)
    _, found = run(capsys, uri, "history", NAME)
    events = [(each["version"], each["action"], each["verdict"]) for each in found["records"]]
    gate = [(1, "gate", "promoted"), (2, "gate", "promoted"), (3, "gate", "declined")]
    assert events == [*gate, (1, "rolled back", "promoted")]


def test_pull_compares_the_files_with_their_checksum(
    capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path
) -> None:
    code, found = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 0, found
    assert found["verified"] and (tmp_path / "model" / "MLmodel").is_file()
    assert not list(tmp_path.glob(".model*"))


def test_pull_of_other_files_is_refused(capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    client.set_model_version_tag(NAME, "2", "digest", "sha256:0")
    code, line = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 2 and "are not those that were registered" in line and line.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "reid-comand"], f"no model 'reid-comand' .*did you mean '{NAME}'?"),
        (["show", f"{NAME}@champoin"], "has no alias 'champoin'; did you mean 'champion'?"),
        (["show", f"{NAME}/9"], "has no version 9; it has 1, 2, 3"),
        (["show", "a/b/c"], "names no model; expected NAME, NAME@ALIAS or NAME/VERSION"),
        (["promote", f"{NAME}@champion"], "version 2 of reid-command has the alias champion already"),
        (["promote", f"{NAME}/1", "--alias", "v3"], "--alias: MLflow reserves the alias 'v3'"),
        (["promote", NAME], "name a version, as reid-command@champion or reid-command/1"),
        (["rollback", NAME, "--alias", "none"], "no version has the alias none"),
        (["rollback", f"{NAME}@champion"], "give the name alone"),
        (["promote", f"{NAME}/1", "--reason", "x"], "--reason: the gate gives the reason"),
        (["pull", f"{NAME}@champion", "/"], "/ exists; name a new folder"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    before = aliases(uri)
    code, error = run(capsys, uri, *arguments)
    assert code == 2 and error.count("\n") == 1
    assert all(part in error for part in line.split(".*"))
    assert aliases(uri) == before


def test_missing_database_is_not_created(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = run(capsys, f"sqlite:///{tmp_path}/none.db", "list")
    assert code == 2 and "there is no MLflow database" in line and not list(tmp_path.iterdir())


def holder(version: int, action: str, champion: int | None) -> Record:
    return Record.model_validate(
        {
            "alias": "champion",
            "number": version,
            "version": version,
            "action": action,
            "verdict": "promoted",
            "reason": "",
            "champion": champion,
            "at": "",
            "by": {},
        }
    )


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ([(1, "gate", None)], None),
        ([(1, "gate", None), (2, "gate", 1)], 1),
        ([(2, "gate", 1)], 1),
        ([(1, "gate", None), (2, "gate", 1), (3, "gate", 2), (2, "rolled back", 3)], 1),
        ([(1, "gate", None), (2, "gate", 1), (1, "promoted by hand", 2)], 2),
    ],
    ids=["first", "second", "unrecorded", "after a rollback", "by hand"],
)
def test_champion_before_is_that_of_the_records(
    changes: list[tuple[int, str, int | None]], before: int | None
) -> None:
    records = [holder(*change) for change in changes]
    assert champion_before(records, changes[-1][0], {1, 2, 3}) == before
    assert champion_before(records, changes[-1][0], set()) is None
