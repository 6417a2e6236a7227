"""The commands of the guides of infra/, run unchanged."""

import base64
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.infra.pods import K8S, Manifest
from tests.infra.required_tools import need, need_module
from tests.support.paths import ROOT

KUBERNETES = K8S / "README.md"
REGION = "eu-central-1"


def commands(file: Path, mark: str) -> str:
    """Return the commands of a guide after the comments ``<!-- test: MARK -->`` and ``<!-- run: ... -->``."""
    marks = rf"<!-- test: {mark} -->\n *<!-- run: [^\n]* -->\n"
    block = re.search(rf"{marks} *```sh\n(.*?)\n *```", file.read_text(), re.S)
    assert block
    return textwrap.dedent(block[1])


def objects(shell: str, kubectl: str, folder: Path, **environment: str) -> tuple[list[Manifest], list[str]]:
    """Run commands with kubectl; return the objects they send, and the modes of the files they remove."""
    need("openssl")
    # Only the API server and the name of the folder are simulated.
    stubs = f"""
        kubectl() {{
            [ "$1" = apply ] && cat || "{kubectl}" "$@" --dry-run=client --output=yaml
            echo ---
        }}
        mktemp() {{ mkdir "{folder}/new" && echo "{folder}/new"; }}
        rm() {{ stat --format='mode %a' * >&2; command rm "$@"; }}
    """
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", stubs + shell],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    return made, re.findall(r"^mode (\d+)$", done.stderr, re.M)


def secrets(mark: str, kubectl: str, folder: Path, **environment: str) -> dict[str, dict[str, str]]:
    """Return the Secrets that a block of the Kubernetes guide creates; its files must be private."""
    made, modes = objects(commands(KUBERNETES, mark), kubectl, folder, **environment)
    assert len(modes) >= 4
    assert set(modes) == {"600"}
    assert not (folder / "new").exists()
    assert {each["metadata"]["namespace"] for each in made} == {"reid"}
    return {
        each["metadata"]["name"]: {
            key: base64.b64decode(value).decode() for key, value in each["data"].items()
        }
        for each in made
    }


def run(shell: str) -> str:
    """Run commands in the folder of the project, with the AWS command line; return their output."""
    path = Path(need("aws", "pipx install awscli")).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'PATH="{path}:$PATH"\n{shell}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def aws_credentials() -> Iterator[pytest.MonkeyPatch]:
    """Set invented AWS credentials, and none of this machine, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        yield patch


@contextmanager
def aws_account() -> Iterator[None]:
    """Simulate an empty AWS account with moto, for this process and its children."""
    need_module("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with aws_credentials() as patch:
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            yield
    finally:
        server.stop()
