"""Whole sweeps, each with one fault: what the user reads, and what is kept."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from tests.support import command_line
from tests.support.command_line import read_until
from tests.support.ray_nodes import RayNodes
from tests.support.servers import Postgres, Seaweed
from tests.support.sweep_files import write_sweep

SWEEP: dict[str, Any] = {
    "config": {"epochs": 4},
    "search": {"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 3]}},
    "sampler": {"tpe": {"seed": 5, "n_startup_trials": 2}},
    "scheduler": {"asha": {"grace": 1, "reduction": 2}},
    "budget": {"trials": 6},
    "resources": {"concurrent": 1},
}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_sweep(tmp_path, **SWEEP)


def options_for(store: Path, *settings: str) -> list[str]:
    return ["--storage", str(store), *(option for setting in settings for option in ("--set", setting))]


def study(store: Path, name: str = "parabola") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{store}/{name}/study.db")


def test_trial_that_hangs_twice_fails(file: Path, tmp_path: Path) -> None:
    settings = ["search={x: {uniform: [0, 1]}}", "config.fault=hang", "budget.trials=1"]
    done = command_line.run("sweep", file, *options_for(tmp_path, *settings, "resources.report_timeout=4s"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("resumes from its last checkpoint") == 1
    assert "trial-0000 failed: it hung 2 times: no report for 4 s" in done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("parabola").experiment_id])
    (run,) = [run for run in runs if "trial.number" in run.data.tags]
    assert run.info.status == "FAILED" and run.data.tags["trial.reason"].startswith("it hung 2 times")
    log = Path(client.download_artifacts(run.info.run_id, "log-tail.txt", str(tmp_path))).read_text()
    assert "example_trainable.py" in log and "in fit" in log  # the stacks at the hang


def test_trial_with_dying_workers_fails(file: Path, tmp_path: Path) -> None:
    settings = ["search={x: {uniform: [0, 1]}}", "config.fault=die", "config.seconds=1", "budget.trials=1"]
    done = command_line.run("sweep", file, *options_for(tmp_path, *settings))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("resumes from its last checkpoint") == 4
    assert "5 times without progress" in done.stdout
    (trial,) = study(tmp_path).trials
    assert trial.intermediate_values.keys() == {1}


def test_trial_out_of_memory_fails_without_retry(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    threshold = 1 - memory.available / memory.total + (4 << 30) / memory.total  # 4 GB more than now
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    settings = ["search={x: {uniform: [0, 1]}}", "config.fault=greedy", "budget.trials=1"]
    done = command_line.run("sweep", file, *options_for(tmp_path, *settings))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "resumes from its last checkpoint" not in done.stdout
    failed = r"trial-0000 failed: out of memory: its node ran low, \S+GB used / \S+GB limit, val/score"
    assert re.search(failed, done.stdout), done.stdout


def test_trial_with_damaged_checkpoint_starts_again(file: Path, tmp_path: Path) -> None:
    settings = ["config.seconds=1", "config.epochs=12", "scheduler=none", "budget.trials=1"]
    with command_line.start("sweep", file, *options_for(tmp_path, *settings)) as (process, output):
        read_until(output, epochs=2)
        process.send_signal(signal.SIGINT)
        text = output.read()
    assert process.returncode == 130, text
    (reported,) = tmp_path.rglob("checkpoint_*/reported.json")
    reported.unlink()
    done = command_line.run("sweep", file, *options_for(tmp_path, *settings))
    assert done.returncode == 0, done.stdout + done.stderr
    damaged = reported.parent.name
    assert f"trial-0000 resumes from its last checkpoint: storage: {damaged} is damaged" in done.stdout
    (trial,) = study(tmp_path).trials
    assert sorted(trial.intermediate_values) == list(range(1, 13))


def test_sweep_ends_after_failures_in_a_row(file: Path, tmp_path: Path) -> None:
    poisoned = [
        "scheduler=none",
        "search.fault={choice: [none, crash]}",
        "budget.failures=3",
        "config.epochs=2",
    ]
    everywhere = [setting.replace("none, ", "") for setting in poisoned]
    done = command_line.run("sweep", file, *options_for(tmp_path / "all", *everywhere))
    assert done.returncode == 1, done.stdout + done.stderr
    reason = "RuntimeError: the trainable crashed as asked"
    assert f"the last 3 trials failed, 3 of them with: {reason}" in done.stdout
    assert len(study(tmp_path / "all").trials) in (3, 4)
    done = command_line.run("sweep", file, *options_for(tmp_path / "some", *poisoned))
    assert done.returncode == 0, done.stdout + done.stderr
    states = {trial.state.name for trial in study(tmp_path / "some").trials}
    assert "FAIL" in states and "COMPLETE" in states


def test_sweep_killed_repeatedly_is_equal_to_last_bit(file: Path, tmp_path: Path) -> None:
    settings = ["config.seconds=0.5"]
    calm = command_line.run("sweep", file, *options_for(tmp_path / "calm", *settings))
    assert calm.returncode == 0, calm.stdout + calm.stderr
    killed = 0
    for patience in (18.0, 25.0, 21.0, 31.0, 600.0):
        command = command_line.command("sweep", file, *options_for(tmp_path / "hurt", *settings))
        with subprocess.Popen(
            command, env=command_line.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.wait(patience) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
    assert killed == 4
    one, other = study(tmp_path / "calm").trials, study(tmp_path / "hurt").trials
    assert [(t.params, t.values, t.intermediate_values, t.state) for t in one] == [
        (t.params, t.values, t.intermediate_values, t.state) for t in other
    ]


def test_sweep_with_damaged_or_missing_study_is_refused(file: Path, tmp_path: Path) -> None:
    options = options_for(tmp_path, "budget.trials=1", "scheduler=none")
    done = command_line.run("sweep", file, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = tmp_path / "parabola/study.db"
    before = kept.read_bytes()
    kept.write_bytes(before[: len(before) // 2])
    (line,) = refusal(command_line.run("sweep", file, *options, "--trials", "2"))
    assert line.startswith(f"error: {file}: study: {kept} is damaged (") and line.endswith("with --fresh")
    kept.unlink()
    (line,) = refusal(command_line.run("sweep", file, *options, "--trials", "2"))
    assert line.startswith(f"error: {file}: study: it holds no trial, but ") and line.endswith("with --fresh")
    kept.write_bytes(before)
    done = command_line.run("sweep", file, *options, "--trials", "2")
    assert done.returncode == 0 and len(study(tmp_path).trials) == 2, done.stdout + done.stderr


def refusal(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a refusal."""
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr.splitlines()


def test_study_that_is_removed_while_its_sweep_runs_is_named(file: Path, tmp_path: Path) -> None:
    options = options_for(tmp_path, "config.seconds=2", "scheduler=none")
    with command_line.start("sweep", file, *options) as (process, output):
        read_until(output, 1)
        (tmp_path / "parabola/study.db").unlink()
        text = output.read()
    assert process.returncode == 1
    assert "Traceback" not in text
    assert "was its file moved, replaced or made read-only?" in text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root and its capabilities")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_sweep_on_full_disk_stops_and_resumes_later(file: Path, tmp_path: Path, small_disk: Path) -> None:
    settings = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "config.seconds=1", "config.epochs=12"]
    options = options_for(small_disk, *settings, "scheduler=none", "budget.trials=2")
    with command_line.start("sweep", file, *options) as (process, output):
        lines = read_until(output, epochs=2)
        filler = small_disk / "filler"
        fill(filler)
        lines.append(output.read())
    text = "".join(lines)
    assert process.returncode == 1, text
    assert "No space left" in text or "no space is left" in text or "disk is full" in text, text
    assert "Traceback" not in text
    filler.unlink()
    done = command_line.run("sweep", file, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [len(trial.intermediate_values) for trial in study(small_disk).trials] == [12, 12]


def test_sweep_goes_on_while_the_disk_of_mlflow_is_full(file: Path, tmp_path: Path, small_disk: Path) -> None:
    settings = [f"tracking.uri=sqlite:///{small_disk}/mlflow.db", "config.seconds=1", "config.epochs=8"]
    options = options_for(tmp_path, *settings, "scheduler=none", "budget.trials=2")
    filler = small_disk / "filler"
    with command_line.start("sweep", file, *options) as (process, output):
        lines = read_until(output, epochs=2)
        fill(filler)
        lines += read_until(output, epochs=5)
        shown = command_line.run("status", tmp_path / "parabola", "--json")
        assert "database or disk is full" in json.loads(shown.stdout)["undelivered"]
        lines.append(output.read())
    text = "".join(lines)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    assert text.count("database or disk is full; it is kept") == 1, text
    assert "the first is epoch" in text and "; rerun the command to try again" in text
    assert [trial.state.name for trial in study(tmp_path).trials] == ["COMPLETE"] * 2
    filler.unlink()
    done = command_line.run("sweep", file, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{small_disk}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("parabola").experiment_id])
    trials = [run for run in runs if "trial.number" in run.data.tags]
    assert len(trials) == 2
    for run in trials:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/score")]
        assert steps == list(range(1, 9))


def fill(filler: Path) -> None:
    """Take what is left of a file system, to the last byte."""
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)):
                    pass


def test_sweeps_on_one_cluster_leave_nothing(file: Path, tmp_path: Path) -> None:
    environment = command_line.environment()
    elsewhere = environment | {"RAY_ADDRESS": "127.0.0.1:9"}  # --address has precedence
    with RayNodes(2, environment, tmp_path / "ray.log") as nodes:
        jobs: list[subprocess.Popen[Any]] = []
        for name in ("one", "two"):
            options = options_for(tmp_path, f"name={name}", "resources={concurrent: auto}", "budget.trials=8")
            command = command_line.command("sweep", file, *options, "--address", nodes.address)
            with (tmp_path / f"{name}.log").open("wb") as log:
                jobs.append(subprocess.Popen(command, env=elsewhere, stdout=log, stderr=log))
        codes = [job.wait(500) for job in jobs]
        logs = [(tmp_path / f"{name}.log").read_text() for name in ("one", "two")]
        assert codes == [0, 0] and "cannot check for unused placement groups" not in "".join(logs), logs
        assert nodes.placement_groups() == [] and nodes.left() == []
    assert [len(study(tmp_path, name).trials) for name in ("one", "two")] == [8, 8]


def test_sweep_whose_raylet_dies_ends_and_resumes(file: Path, tmp_path: Path) -> None:
    # The trial lasts longer than it takes to notice that a node died.
    settings = ["config.seconds=5", "config.epochs=8", "scheduler=none", "budget.trials=1"]
    options = options_for(tmp_path, *settings)
    with command_line.start("sweep", file, *options) as (process, output):
        lines = read_until(output, 2)
        (raylet,) = [child for child in psutil.Process(process.pid).children() if child.name() == "raylet"]
        raylet.kill()
        lines += output
        assert process.wait(120) == 130
    assert "the Ray node of this driver died\n" in lines
    assert not any("raylet.cc" in line or "(raylet)" in line for line in lines), lines  # lines of Ray's log
    assert "interrupted; rerun the command to resume the sweep\n" in lines
    done = command_line.run("sweep", file, *options)
    assert done.returncode == 0 and "resuming: " in done.stdout, done.stdout + done.stderr
    assert len(study(tmp_path).trials) == 1


def test_sweep_that_waits_for_its_bucket_ends_at_one_signal(tmp_path: Path) -> None:
    with Seaweed(tmp_path / "seaweed") as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment().items():
            patch.setenv(name, value)
        store = f"s3://{bucket.bucket}/runs"
        file = write_sweep(tmp_path, config={"epochs": 8, "seconds": 2.0}, resources={"concurrent": 1})
        options = ["--storage", store, "--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
        with command_line.start("sweep", file, *options) as (process, output):
            lines = read_until(output, 2)
            bucket.kill()
            for line in output:
                lines.append(line)
                if "waiting before try 3" in line:
                    break
            process.send_signal(signal.SIGTERM)
            lines += output
            assert process.wait(60) == 130, lines
        assert "finished work is kept, rerun the command to resume" in lines[-1], lines
        bucket.start()
        done = command_line.run("sweep", file, *options, "--trials", "1")
        assert done.returncode == 0 and "resuming: " in done.stdout, done.stdout + done.stderr


def test_node_without_the_keys_of_the_bucket_is_told_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys = command_line.environment() | {"AWS_EC2_METADATA_DISABLED": "true"}
    with Seaweed(tmp_path / "seaweed") as bucket, RayNodes(1, without_keys, tmp_path / "ray.log") as nodes:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        options = ["--storage", f"s3://{bucket.bucket}/runs", "--address", nodes.address]
        options += ["--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
        line = command_line.refused("sweep", write_sweep(tmp_path), *options)
    assert "of the Ray cluster cannot read s3://sweeps/runs/parabola" in line
    assert line.endswith("start its Ray with the credentials of the storage")


def test_sweep_in_postgresql_survives_driver_and_server(file: Path, tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres") as postgres:
        options = options_for(tmp_path, f"study={postgres.uri}", "config.seconds=2")
        with command_line.start("sweep", file, *options) as (process, output):
            read_until(output, epochs=3)
            process.kill()
        postgres.restart()
        done = command_line.run("sweep", file, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "resuming: " in done.stdout
        trials = optuna.load_study(study_name="parabola", storage=postgres.uri).trials
        shown = subprocess.run(
            [sys.executable, "-m", "orchestrator.status", str(tmp_path / "parabola"), "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert len(trials) == 6 and all(trial.state.is_finished() for trial in trials)
    assert not (tmp_path / "parabola/study.db").exists()
    assert sum(json.loads(shown.stdout)["trials"].values()) == 6


def test_sweep_waits_for_a_postgresql_that_restarts(file: Path, tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres") as postgres:
        options = [*options_for(tmp_path, f"study={postgres.uri}", "config.seconds=2"), "--wait", "300"]
        with command_line.start("sweep", file, *options) as (process, output):
            lines = read_until(output, epochs=3)
            postgres.kill()
            lines += itertools.takewhile(lambda line: line != "waiting for an answer\n", output)
            postgres.start()
            lines += output
        assert process.returncode == 0, "".join(lines)
        trials = optuna.load_study(study_name="parabola", storage=postgres.uri).trials
    text = "".join(lines)
    assert f"study: {postgres.uri} does not answer: " in text and "resuming: " in text
    assert len(trials) == 6 and all(trial.state.is_finished() for trial in trials)


def test_sigterm_to_the_process_group_stops_in_good_order(file: Path, tmp_path: Path) -> None:
    options = options_for(
        tmp_path, "config.seconds=2", "config.epochs=20", "scheduler=none", "budget.trials=1"
    )
    command_line.interrupt("sweep", file, *options, epochs=1, number=signal.SIGTERM)
    (trial,) = study(tmp_path).trials
    assert not trial.state.is_finished() and trial.intermediate_values


def test_second_ctrl_c_ends_the_driver_at_once(file: Path, tmp_path: Path) -> None:
    options = options_for(tmp_path, "config.seconds=2", "config.epochs=60", "scheduler=none")
    with command_line.start("sweep", file, *options) as (process, output):
        read_until(output, epochs=1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        text = output.read()
        process.wait()
    assert process.returncode == 130, text
    assert time.monotonic() - begin < 60
    assert "rerun the command to resume" in text
