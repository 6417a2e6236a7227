"""Every file of a job's folder, damaged in every way: the job continues, or one line says what to do.

Each case damages one file of a sweep or a comparison, runs the commands that read a job, and resumes the job
up to the point at which Ray would start. ``FAULT_DAMAGES`` (default 2,000) is the number of cases.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import status, stop
from orchestrator.config.job import Job
from orchestrator.console.progress import Progress
from orchestrator.drivers.base import Driver
from orchestrator.drivers.comparison import ComparisonDriver, ComparisonOutcome
from orchestrator.drivers.sweep import SweepDriver
from orchestrator.drivers.sweep_outcome import BestTrial, SweepOutcome
from orchestrator.errors import InputError, SweepError
from orchestrator.execution.monitor import TrialMonitor
from orchestrator.interrupt import Interrupt
from orchestrator.storage import lease
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import BudgetUsage
from orchestrator.study import attributes
from orchestrator.study.base import Study
from orchestrator.study.grid import GridStudy
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Failed, Trained
from orchestrator.tracking.model_registry import RegisteredModel
from tests.support.sweep_files import load_comparison, load_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

LONGEST = 1100
"""Limit of the characters in the line about a fault."""

CONTINUED, REFUSED = "continued", "refused"
Damage = Callable[[Path, random.Random], None]

CASES = int(os.environ.get("FAULT_DAMAGES", "2000"))
USED = BudgetUsage(seconds=90, gpu_seconds=1800)
ANY_VALUE: list[Any] = [None, True, -1, 0, 1e308, "", "text", [], [1], {}, {"a": {}}, "\ud800", [[[]]]]


def build(job: Job, open_study: Callable[[JobDirectory], Study], finished: bool) -> None:
    """Write the folder of a job as its driver does."""
    directory = JobDirectory(job)
    with directory.open(False, Interrupt()) as (_, held):
        held.record.used = USED.model_copy()
        study = open_study(directory)
        if isinstance(study, SearchStudy):
            study.seed([])
        for number in range(4):
            suggestion = study.ask()
            assert suggestion is not None
            for epoch in (1, 2):
                folder = Path(directory.root, "trials", f"trial-{number:04d}", f"checkpoint_{epoch:06d}_a_b")
                folder.mkdir(parents=True)
                (folder / "reported.json").write_text('[{"epoch": 1, "val/score": 0.5}]')
                report = EpochEnded(epoch, {"val/score": number / 8, "train/loss": 1.0}, str(folder))
                study.record_epoch(number, report)
                study.should_stop(number, report)
            if number < 2:
                study.record_checkpoint(number, str(folder))
                study.record_scores(number, {"test/score": 0.5})
                study.on_trial_end(number, Trained(str(folder)))
            elif number == 2 or finished:
                study.on_trial_end(number, Failed("RuntimeError: no"))
        study.record_usage(USED)
        if finished:
            directory.finish(outcome_of(job, study))
        (directory.path / "report.html").write_text("<html></html>")
    directory.store.write(lease.stop_request_name(job.name), held.record.identity.encode())


def outcome_of(job: Job, study: Study) -> dict[str, Any]:
    common = {"tracking": job.tracking.uri, "report": "report.html"}
    outcome: SweepOutcome | ComparisonOutcome
    if isinstance(study, GridStudy):
        rows = [row.as_json() for row in study.rows()]
        outcome = ComparisonOutcome(file={}, rows=rows, trouble=["it failed"], **common)
    else:
        outcome = SweepOutcome(
            sweep=job.name,
            budget=job.resolved()["budget"],
            trials=study.count(),
            best=BestTrial(trial=0, parameters={"x": 0.5}),
            objective={"val/score": 0.5},
            scores={"test/score": 0.5},
            model=RegisteredModel(name="m", version=1, alias="a", uri="models:/m@a", created=True),
            **common,
        )
    return outcome.model_dump(mode="json")


def jobs(folder: Path) -> Iterator[tuple[str, Job, type[Driver[Any]]]]:
    """Build a sweep that is finished, one that is not, and a comparison."""
    for name, finished in (("unfinished", False), ("finished", True)):
        budget = {"trials": 4 if finished else 6}
        sweep = load_sweep(folder, name, config={"epochs": 2}, budget=budget)
        build(sweep, lambda directory, sweep=sweep: SearchStudy(sweep, directory), finished)  # type: ignore[misc]
        yield name, sweep, SweepDriver
    comparison = load_comparison(folder)
    build(comparison, lambda directory: GridStudy(comparison, directory), True)
    yield comparison.name, comparison, ComparisonDriver


def missing(file: Path, chance: random.Random) -> None:
    file.unlink()


def empty(file: Path, chance: random.Random) -> None:
    file.write_bytes(b"")


def truncated(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content) or 1)])


def one_byte(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes() or b"x")
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    file.write_bytes(content)


def one_page(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes() or b"x")
    start = chance.randrange(0, len(content), 4096)
    page = content[start : start + 4096]
    content[start : start + 4096] = chance.choice([bytes(len(page)), chance.randbytes(len(page))])
    file.write_bytes(content)


def other_type(file: Path, chance: random.Random) -> None:
    """Replace one value of a JSON file or a database by one of another type, or the whole content."""
    if file.name == "study.db":
        change_cell(file, chance)
        return
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        content = None
    place, value = content, chance.choice(ANY_VALUE)
    while isinstance(place, dict) and place:
        key = chance.choice(list(place))
        if not isinstance(place[key], dict) or not place[key] or chance.random() < 0.3:
            place[key] = value
            break
        place = place[key]
    else:
        content = value
    file.write_text(json.dumps(content))


def change_cell(file: Path, chance: random.Random) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        filled = [table for (table,) in tables if connection.execute(f"SELECT 1 FROM {table}").fetchone()]
        table = chance.choice(filled)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        (row,) = chance.choice(connection.execute(f"SELECT rowid FROM {table}").fetchall())
        value = chance.choice([None, -1, 10**12, "", "text", "{", b"\xff\xfe", "[]", '"text"', "{}", "NaN"])
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(
                f"UPDATE {table} SET {chance.choice(columns)} = ? WHERE rowid = ?", (value, row)
            )


def unreadable(file: Path, chance: random.Random) -> None:
    """Put a folder in its place: permissions do not bind an administrator."""
    file.unlink()
    file.mkdir()


def other_version(file: Path, chance: random.Random) -> None:
    """Let it be of an earlier or a later version."""
    try:
        content = json.loads(file.read_bytes())
        content.pop("schema")
    except (ValueError, TypeError, KeyError, AttributeError):
        one_byte(file, chance)
        return
    if chance.random() < 0.5:
        content["schema"] = chance.choice([3, 10**30])
    file.write_text(json.dumps(content))


KINDS: list[Damage] = [missing, empty, truncated, one_byte, one_page, other_type, unreadable, other_version]


def summary(study: Study) -> dict[str, Any]:
    """Return what must not get lost of a study."""
    trials = study.started_trials
    return {
        "states": [trial.state.name for trial in trials],
        "epochs": [sorted(attributes.epochs(trial)) for trial in trials],
        "values": [study.values(trial) for trial in trials],
        "scores": [study.scores(trial) for trial in trials],
    }


def resume(job: Job, make: type[Driver[Any]]) -> dict[str, Any]:
    """Do what the command does before it starts Ray; return what it continues with."""
    progress, interrupt = Progress(), Interrupt()
    driver: Driver[Any] = make(job, progress, interrupt)  # type: ignore[arg-type]
    directory = driver._directory
    with driver._explained_errors():
        outcome = driver._finished_outcome()
        if outcome is not None:
            driver.summarise(outcome)
        directory.check_driver()
        with directory.open(False, interrupt) as (job_id, held):
            study = driver.open_study()
            study.add_usage(held.record.used)
            TrialMonitor(job, study, held, None).status_line()  # type: ignore[arg-type]
            return {"id": job_id, "used": held.record.used.model_dump(), **summary(study)}


def quiet(command: Callable[[list[str]], int], *options: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and its errors."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = command(list(options))
    return code, err.getvalue()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith((".lock", ".swap", ".tmp"))
    }


def fault_of(
    case: tuple[str, Job, type[Driver[Any]]], file: Path, kind: Damage, expected: dict[str, Any]
) -> str:
    """Run the commands on a job of which one file is damaged; return what is wrong, or what became of it."""
    name, job, make = case
    store = Path(job.storage)
    before = content(store)
    for command, options in (
        (status.main, [f"{store}/{name}"]),
        (status.main, [f"{store}/{name}", "--json"]),
        (status.main, [f"{store}/{name}", "--trial", "1"]),
        (status.main, ["--storage", str(store)]),
        (stop.main, [f"{store}/{name}", "--timeout", "0.1"]),
    ):
        code, err = quiet(command, *options)
        if code not in (0, 2) or err.count("\n") != (code == 2):
            return f"{command.__module__} gave {code} and {err}"
    if without_requests(content(store)) != without_requests(before):
        return "a command that reads has written"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = resume(job, make)
    except (InputError, SweepError) as error:
        if "\n" in str(error) or len(str(error)) > LONGEST:
            return f"more than a line: {error}"
        kept = content(store)
        changed = {key for key, value in before.items() if value and kept.get(key) != value}
        changed -= {f".{name}.driver.json", f"{name}/{job.kind}.json"}
        if kind is other_type:  # a study that lost its name gets a second one beside it
            changed.discard(f"{name}/study.db")
        return f"{changed} changed" if changed else REFUSED
    except Exception as error:
        return f"traceback of {error!r}"
    if file.name.startswith("study.db"):
        return CONTINUED  # a byte in a value cannot be noticed
    different = {key for key in found if found[key] != expected[key]}
    if file.name == f".{name}.driver.json" and (
        found["used"]["seconds"] >= USED.seconds - 1e-6 or kind in (one_byte, other_type)
    ):
        different.discard("used")
    return f"{different} lost" if different else CONTINUED


def without_requests(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.endswith(".stop")}


def test_damaged_files_cost_nothing_or_one_line(tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("FAULT_SEED", "0")))
    built = list(jobs(tmp_path))
    store, original = tmp_path / "store", tmp_path / "original"
    shutil.copytree(store, original)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = {name: resume(job, make) for name, job, make in built}
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(CASES):
        shutil.rmtree(store)
        shutil.copytree(original, store)
        case = built[number % len(built)]
        own = [file for file in sorted(store.glob(f"{case[0]}/**/*")) if file.is_file()]
        files = [*own, *sorted(store.glob(f".{case[0]}.*"))]
        records = [file for file in files if "trials" not in file.parts and file.suffix != ".html"]
        file, kind = chance.choice(records if chance.random() < 0.9 else files), chance.choice(KINDS)
        kind(file, chance)
        outcome = fault_of(case, file, kind, expected[case[0]])
        outcomes[outcome] += 1
        if outcome not in (CONTINUED, REFUSED):
            faults.append(f"case {number}, {file.relative_to(store)} {kind.__name__}: {outcome}")
    print(outcomes[CONTINUED], "continued,", outcomes[REFUSED], "refused")
    assert not faults, "\n".join(faults)
    assert min(outcomes[CONTINUED], outcomes[REFUSED]) > CASES // 20
