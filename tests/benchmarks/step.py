"""The joint step, embedding, and training inside `Training`, each on one thread against its limit.

The step is that of ``search_spaces/real.yaml`` on frames in memory: 16 sequences of 6 frames and 48 images.
All times are CPU seconds of one thread, because other processes may share the cores. No row uses a GPU.
"""

import functools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from tests.benchmarks.table import Row, alternate, seconds, seconds_list
from tests.support.paths import ROOT
from tests.support.recorder import Recorder
from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig
from trainables.data import sources
from trainables.data.batch import Batch
from trainables.data.loading import as_tensor
from trainables.data.packing import Pack
from trainables.data.parts import Part
from trainables.evaluation.cost import one_thread
from trainables.evaluation.embedding import FRAMES_AT_ONCE, embed
from trainables.methods import Method, build_method
from trainables.network.embedder import SequenceEmbedder
from trainables.training.trainer import Training

ENCODERS: dict[str, dict[str, Any]] = {
    "residual": {"name": "residual"},
    "residual, channels of alignment.yaml": {"name": "residual", "options": {"channels": [8, 16, 32, 64]}},
    "mclaughlin2016": {"name": "mclaughlin2016"},
    "resnet18": {"name": "resnet18"},
}
GENERATED = {
    "sets": {
        "walkers": {"layout": "prid2011", "generate": {"identities": 60, "frames": 12}},
        "stills": {"layout": "cuhk03", "generate": {"identities": 40, "seed": 1}},
    },
    "sequences": "walkers",
    "images": ["stills"],
    "targets": ["walkers"],
    "validation": 0,
}


def rows(quick: bool) -> list[Row]:
    """Return the rows of this module."""
    with one_thread():
        encoders = [*ENCODERS][:1] if quick else [*ENCODERS]
        repetitions = 2 if quick else 5
        return [
            *(row for encoder in encoders for row in step_rows(encoder, repetitions)),
            *training_and_embedding_rows(repetitions),
            import_row(repetitions),
        ]


def real_config(**changes: Any) -> AlignmentConfig:
    """Return the config of ``search_spaces/real.yaml`` with other values of some fields."""
    config = yaml.safe_load((ROOT / "search_spaces" / "real.yaml").read_text())["config"]
    return AlignmentConfig.model_validate(config | changes)


def step_rows(encoder: str, repetitions: int) -> Iterator[Row]:
    """Yield the step of one encoder in float32 and bfloat16, against the convolution peak of the same run."""
    config = real_config(encoder=ENCODERS[encoder] | {"features": 128, "dropout": 0.0})
    batch = random_batch(config)
    step = StepOf(config, batch)
    operations = convolution_operations(step.method, batch)
    for precision in (torch.float32, torch.bfloat16):
        multiply, convolve = peaks(precision)
        times: list[float] = []
        ceilings: list[tuple[float, float]] = []
        update = functools.partial(step, precision)
        update()
        for _ in range(repetitions):
            times.append(seconds(update, process_time))
            ceilings.append((seconds(multiply.run, process_time), seconds(convolve.run, process_time)))
        product = multiply.operations / statistics.median(pair[0] for pair in ceilings) / 1e9
        peak = convolve.operations / statistics.median(pair[1] for pair in ceilings) / 1e9
        achieved = operations / statistics.median(times) / 1e9
        limit = 144 * peak * 1e9 / operations
        yield Row(
            f"joint step, {encoder}, {str(precision).removeprefix('torch.')}: frames/s forward and backward",
            f"{144 / statistics.median(times):.0f} frames/s, {achieved:.0f} GFLOP/s",
            f"roofline {limit:.0f} frames/s: convolution {peak:.0f}, matrix product {product:.0f} GFLOP/s",
            f"{achieved / peak:.2f} of the convolution peak",
            raw=f"step {seconds_list(times)}; convolution {seconds_list([pair[1] for pair in ceilings])};"
            f" product {seconds_list([pair[0] for pair in ceilings])}; {operations / 1e9:.1f} GFLOP a step",
        )


class StepOf:
    """Training step on one batch in memory, as `Training.train_step` takes it, without the training."""

    def __init__(self, config: AlignmentConfig, batch: Batch, method: Method | None = None) -> None:
        torch.manual_seed(0)
        self.method = method or build_method(config.method, config.method_config, 97, 194)
        self.method.train()
        self.optimizer = config.optimizer.build(self.method)
        self.batch, self.clip = batch, config.optimizer.clip

    def __call__(self, precision: torch.dtype = torch.float32) -> None:
        """Update the parameters once."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss: Tensor = self.method(self.batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.method.parameters(), self.clip)
        self.optimizer.step()


def random_batch(config: AlignmentConfig) -> Batch:
    """Return a batch of the config's size, in the memory layout in which frames are loaded."""
    rng, size = np.random.default_rng(0), (config.data.height, config.data.width, 3)
    batch = config.batch
    sequences = rng.integers(
        0, 256, (batch.identities * batch.sequences, batch.frames, *size), dtype=np.uint8
    )
    images = rng.integers(0, 256, (batch.image_identities * batch.images, *size), dtype=np.uint8)
    identities = torch.arange(batch.identities).repeat_interleave(batch.sequences)
    image_identities = torch.arange(batch.image_identities).repeat_interleave(batch.images)
    return Batch(
        as_tensor(sequences, None),
        identities,
        torch.zeros_like(identities),
        as_tensor(images, None),
        image_identities,
        torch.zeros_like(image_identities),
    )


def convolution_operations(method: Method, batch: Batch) -> int:
    """Return the operations of the encoder's convolutions in a step, forward and twice that backward."""
    counts: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counts.append(6 * output.numel() * module.weight[0].numel())

    convolutions = [module for module in method.embedder.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    method.train()(batch)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@dataclass(frozen=True, slots=True)
class Load:
    """A function of known cost."""

    run: Callable[[], object]
    operations: int


def peaks(precision: torch.dtype) -> tuple[Load, Load]:
    """Return one matrix product and one convolution that reach the processor's speed."""
    side, channels, rows = 1024, 128, 32
    left, right = (torch.rand(side, side).to(precision) for _ in range(2))
    maps = torch.rand(48, channels, rows, rows).to(precision, memory_format=torch.channels_last)
    kernel = torch.rand(channels, channels, 3, 3).to(precision, memory_format=torch.channels_last)
    multiply, convolve = (lambda: left @ right), (lambda: nn.functional.conv2d(maps, kernel, padding=1))
    multiply(), convolve()
    return Load(multiply, 2 * side**3), Load(convolve, 2 * maps.numel() * channels * 9)


def training_and_embedding_rows(repetitions: int) -> Iterator[Row]:
    """Yield training by `Training.run` and embedding of a packed set, each against a bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        config = real_config(
            data={**GENERATED, "cache": folder},
            epochs=1,
            batch={**real_batch(), "passes": 1},
            precision="float32",  # that of the bare loops
        )
        trainable = AlignmentTrainable()
        trainable.prepare(config)
        training = trainable.training(config, Recorder(Path(folder) / "run"))
        yield training_row(config, training, repetitions)
        yield embedding_row(training.method.embedder, sources.resolve(config.data, "walkers"), repetitions)


def real_batch() -> dict[str, Any]:
    """Return the batch of ``search_spaces/real.yaml``."""
    return real_config().batch.model_dump(exclude={"sampler", "sampler_options"})


def training_row(config: AlignmentConfig, training: Training, repetitions: int) -> Row:
    """Return an epoch of `Training` against as many bare steps of the same network on one batch."""
    batch = training.batches[1, 0]
    bare = StepOf(config, batch, build_like(config, training))
    steps = training.batches.per_epoch

    def epoch() -> None:
        training.epoch = training.step = 0
        training.train_epoch()

    def bare_epoch() -> None:
        for _ in range(steps):
            bare()

    comparison = alternate(epoch, bare_epoch, repetitions, process_time)
    frames = steps * training.method.frames(batch)
    return Row(
        "training in Training.train_epoch, loading and augmenting included",
        f"{frames / statistics.median(comparison.ours):.0f} frames/s",
        f"bare loop on a batch in memory: {frames / statistics.median(comparison.peer):.0f} frames/s",
        f"{1 / comparison.ratio:.3f}",
        "0.97",
        comparison.raw,
    )


def build_like(config: AlignmentConfig, training: Training) -> Method:
    """Return another method of the same shape and state."""
    images = training.batches.images
    method = build_method(
        config.method,
        config.method_config,
        training.batches.sequences.identities,
        images.identities if images else 0,
    )
    method.load_state_dict(training.method.state_dict())
    return method


def embedding_row(embedder: SequenceEmbedder, pack: Pack, repetitions: int) -> Row:
    """Return the embedding of a packed set against the bare forward pass on the same frames in memory."""
    part = Part(pack, np.arange(len(pack)))
    frames = torch.stack([as_tensor(pack.frames(tracklet).copy(), None) for tracklet in range(len(pack))])
    chunks = frames.split(max(1, FRAMES_AT_ONCE // frames.shape[1]))
    embedder.eval()

    @torch.inference_mode()
    def forward() -> list[Tensor]:
        return [embedder(chunk) for chunk in chunks]

    comparison = alternate(
        lambda: embed(embedder, part, torch.device("cpu")), forward, repetitions, process_time
    )
    count = frames.shape[:2].numel()
    return Row(
        "embedding a packed set, residual",
        f"{count / statistics.median(comparison.ours):.0f} frames/s",
        f"bare forward pass: {count / statistics.median(comparison.peer):.0f} frames/s",
        f"{1 / comparison.ratio:.3f}",
        "0.95",
        comparison.raw,
    )


def import_row(repetitions: int) -> Row:
    """Return the CPU time of importing ``trainables.alignment`` against that of PyTorch alone."""

    def cpu_seconds(module: str) -> float:
        code = f"import time, {module}; print(time.process_time())"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
        return float(done.stdout)

    pairs = [(cpu_seconds("trainables.alignment"), cpu_seconds("torch")) for _ in range(repetitions)]
    ours, peer = zip(*pairs, strict=True)
    return Row(
        "import of trainables.alignment, CPU seconds of a process",
        f"{statistics.median(ours):.2f} s",
        f"import of torch alone: {statistics.median(peer):.2f} s",
        f"{statistics.median(ours) / statistics.median(peer):.2f}",
        raw=f"ours {seconds_list(ours)}; peer {seconds_list(peer)}",
    )
