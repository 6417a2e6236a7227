"""The network as a program of ``torch.export``, which runs with PyTorch alone, or is compiled for a device.

Numbers of sequences and of frames stay free. PyTorch unrolls its recurrent layers to the length of the
example, so they are written as scans here.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import (
    scan,
)  # not yet public in PyTorch 2.13; `save_program` tests the result
from torch.nn.functional import linear

from trainables.errors import one_line
from trainables.network.embedder import SequenceEmbedder
from trainables.network.recurrence import GatedRecurrence, McLaughlinLayer

_EXAMPLE = (3, 4)
_SHAPES = ((1, 1), (2, 3), (5, 2))
"""Numbers of sequences and frames: of the example, and of the tests of the program."""
_TOLERANCE = 1e-4


class _ScannedMcLaughlinLayer(nn.Module):
    """`McLaughlinLayer` in evaluation: the first step has feedback from 0, less its bias, plus the start."""

    def __init__(self, layer: McLaughlinLayer) -> None:
        super().__init__()
        self.input, self.feedback, self.start = layer.input, layer.feedback, layer.start

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, inputs]`` to ``[batch, time, hidden_size]``."""
        inputs = self.input(steps)
        first = (torch.arange(steps.shape[1], device=steps.device) == 0).to(steps.dtype)
        inputs = inputs + first[:, None] * (self.start - self.feedback.bias)

        def step(state: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            output = values + self.feedback(state)
            return torch.tanh(output), output.clone()

        return _scan(step, torch.zeros_like(inputs.mean(dim=1)), inputs)


class _ScannedGatedRecurrence(nn.Module):
    """`GatedRecurrence` in evaluation, with the equations of `torch.nn.GRU` and `torch.nn.LSTM`."""

    def __init__(self, recurrence: GatedRecurrence) -> None:
        super().__init__()
        self.cell, self.around = recurrence.cell, recurrence.around

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, features]`` to ``[batch, time, hidden_size]``."""
        output = steps
        for layer in range(self.cell.num_layers):
            output = self._layer(layer, output)
        around: Tensor = self.around(steps)
        return around + output

    def _layer(self, layer: int, steps: Tensor) -> Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        to_gates, feedback, bias, feedback_bias = (getattr(self.cell, f"{name}_l{layer}") for name in names)
        inputs = linear(steps, to_gates, bias)
        size = self.cell.hidden_size
        zero = torch.zeros_like(inputs.mean(dim=1)[:, :size])

        def gru(state: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            back = linear(state, feedback, feedback_bias)
            reset, keep = (values + back)[:, : 2 * size].sigmoid().chunk(2, dim=1)
            new = torch.tanh(values[:, 2 * size :] + reset * back[:, 2 * size :])
            state = (1 - keep) * new + keep * state
            return state, state.clone()

        def lstm(states: tuple[Tensor, Tensor], values: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            state, memory = states
            enter, keep, new, leave = (values + linear(state, feedback, feedback_bias)).chunk(4, dim=1)
            memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * memory.tanh()
            return (state, memory), state.clone()

        if isinstance(self.cell, nn.GRU):
            return _scan(gru, zero, inputs)
        return _scan(lstm, (zero, zero.clone()), inputs)


def save_program(embedder: SequenceEmbedder, path: Path) -> str | None:
    """Write the network as a program, and compare the program with the network.

    The program maps float32 ``[batch, time, 3 or 5, height, width]``, RGB in 0..1 at the size of the
    network, to features of any length ``[batch, dimension]``: ``torch.export.load(path).module()``.

    Returns:
        None, or one line that says why there is no program of this network.
    """
    program_of = copy.deepcopy(embedder).cpu().eval()
    original = copy.deepcopy(program_of)
    _replace_recurrences(program_of)
    config = embedder.config
    shape = (config.channels, config.height, config.width)
    generator = torch.Generator().manual_seed(0)
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch, about its own tensors
        try:
            example = torch.rand(*_EXAMPLE, *shape, generator=generator)
            program = torch.export.export(program_of, (example,), dynamic_shapes=({0: dynamic, 1: dynamic},))
            torch.export.save(program, path)
            module = torch.export.load(path).module()
            for sizes in _SHAPES:
                frames = torch.rand(*sizes, *shape, generator=generator)
                torch.testing.assert_close(module(frames), original(frames), rtol=_TOLERANCE, atol=_TOLERANCE)
        except Exception as error:  # networks of any kind, exported by a compiler
            path.unlink(missing_ok=True)
            return f"torch.export cannot express this network: {one_line(error)[:200]}"
    return None


def _replace_recurrences(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, McLaughlinLayer):
            module.add_module(name, _ScannedMcLaughlinLayer(child))
        elif isinstance(child, GatedRecurrence):
            module.add_module(name, _ScannedGatedRecurrence(child))
        else:
            _replace_recurrences(child)


def _scan(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Tensor) -> Tensor:
    """Return the outputs of ``step`` over the time of ``inputs [batch, time, size]``, in the same shape."""
    outputs: Tensor = scan(step, state, inputs, dim=1)[1]
    return outputs
