"""The exported model behind ``mlflow models serve``, against the same model in this process.

The network is untrained and has random weights: the time does not depend on them. Both run on one thread.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import requests
import torch

from tests.benchmarks.table import Row, alternate
from tests.support.servers import free_ports
from trainables.evaluation.cost import one_thread
from trainables.export.export import example_sequence, export
from trainables.network import images
from trainables.network.embedder import NetworkConfig, SequenceEmbedder

FRAMES = 8
ENCODERS = ("residual", "mclaughlin2016", "resnet18")


def rows(quick: bool) -> list[Row]:
    """Return the rows of this module."""
    encoders = ENCODERS[:1] if quick else ENCODERS
    with one_thread():
        return [row for encoder in encoders for row in encoder_rows(encoder, 5 if quick else 30)]


def encoder_rows(encoder: str, repetitions: int) -> list[Row]:
    """Return the rows of one network: JPEG files, and arrays as lists of numbers."""
    files = example_sequence(FRAMES)
    arrays = [np.array(images.decode(file)) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        config = NetworkConfig.model_validate({"encoder": {"name": encoder}})
        mlflow.pyfunc.save_model(path, **export(SequenceEmbedder(config).eval(), Path(folder) / "export"))
        model = mlflow.pyfunc.load_model(str(path))
        with served(path) as address:
            bodies = {
                "JPEG files": ([base64.b64encode(file).decode() for file in files], files),
                "lists of numbers": ([array.tolist() for array in arrays], arrays),
            }
            return [
                row(f"{encoder}, {name}", address, frames, model, given, repetitions)
                for name, (frames, given) in bodies.items()
            ]


def row(
    what: str,
    address: str,
    frames: list[object],
    model: mlflow.pyfunc.PyFuncModel,
    given: list[object],
    repetitions: int,
) -> Row:
    """Measure one tracklet over HTTP and in this process, in turns."""
    body = json.dumps({"inputs": [frames]})

    def over_http() -> None:
        answer = requests.post(address, body, headers={"Content-Type": "application/json"}, timeout=60)
        answer.raise_for_status()

    comparison = alternate(over_http, lambda: model.predict([given]), repetitions)
    return Row(
        what=f"one tracklet of {FRAMES} frames: {what}; request of {len(body) / 1000:,.0f} kB",
        ours=f"HTTP {1000 * float(np.median(comparison.ours)):.1f} ms",
        peer=f"in process {1000 * float(np.median(comparison.peer)):.1f} ms",
        ratio=f"{comparison.ratio:.2f}",
        aim="60 kB, 3" if "JPEG" in what else "stated",
        raw=comparison.raw,
    )


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model; yield the address of its predictions."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local"],
            env=os.environ | threads,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping")
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def wait_for(address: str, seconds: float = 120) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")
