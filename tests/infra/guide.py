"""The commands that a guide of infra/ shows, run as they stand."""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from required_tools import ROOT, need, need_module


def commands(file: Path, mark: str) -> str:
    """The commands of a guide after the comment ``<!-- test: MARK -->``."""
    found = re.search(rf"<!-- test: {mark} -->\n *```sh\n(.*?)\n *```", file.read_text(), re.S)
    assert found
    return textwrap.dedent(found[1])


def run(shell: str) -> str:
    """Run commands in the project's folder, the AWS command line among them; gives what they print."""
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
def aws_account() -> Iterator[None]:
    """An empty AWS account on moto, for this process and for those that it starts."""
    need_module("moto", "moto[all]")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                patch.delenv(name, raising=False)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            yield
    finally:
        server.stop()
