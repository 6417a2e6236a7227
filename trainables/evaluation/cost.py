"""Cost of an embedder: its size, and the time in which it embeds a sequence."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from trainables.network.embedder import SequenceEmbedder

PARAMETERS, MILLISECONDS = "model/parameters", "model/milliseconds"
"""Metrics of the cost."""

_WARM_UP, _REPEATS = 3, 15


def parameters(embedder: SequenceEmbedder) -> int:
    """Return the number of trained parameters of an embedder, without those that only training needs."""
    return sum(parameter.numel() for parameter in embedder.parameters())


@torch.inference_mode()
def milliseconds(embedder: SequenceEmbedder, frames: int) -> float:
    """Return the time in which one thread of the CPU embeds one sequence of ``frames`` frames.

    It is the median over some repetitions, after others that warm up, of the time that the thread itself
    computed, so that other work on the machine hardly changes it. The embedder is not changed.
    """
    subject = copy.deepcopy(embedder).cpu().eval()
    config = subject.config
    sequence = torch.full((1, frames, config.channels, config.height, config.width), 0.5)
    durations = []
    with one_thread():
        for _ in range(_WARM_UP + _REPEATS):
            start = time.thread_time()
            subject(sequence)
            durations.append(time.thread_time() - start)
    return 1000 * median(durations[_WARM_UP:])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on one thread, and restore the number of threads afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
