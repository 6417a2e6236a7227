"""Recurrent cells over the frames of a sequence.

To add a cell, write one class and select it in `build_recurrence`.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .section import Section


class RecurrenceConfig(Section):
    """Config of the recurrence over frames."""

    cell: Literal["rnn", "gru", "lstm"] = Field(
        "rnn", description="rnn is the cell of McLaughlin et al., 2016"
    )
    hidden_size: int = Field(128, ge=8, le=4096, description="length of the output of a step")
    direction: Literal["forward", "both"] = Field(
        "forward", description="both: a second recurrence reads the sequence from its end"
    )
    layers: int = Field(1, ge=1, le=3, description="number of stacked layers")
    dropout: float = Field(
        0.6, ge=0, lt=1, description="rnn: on the feedback path; gru, lstm: between layers"
    )


class McLaughlinLayer(nn.Module):
    """Recurrent layer of McLaughlin et al., CVPR 2016: ``o_t = W_i x_t + W_s dropout(tanh(o_{t-1}))``.

    As in their code, the first step has a learned start bias instead of feedback. W_i of the first layer is
    the last layer of their encoder, so it is omitted if input and output have the same length.
    """

    def __init__(self, inputs: int, hidden_size: int, dropout: float, project: bool) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden_size) if project else nn.Identity()
        self.feedback = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        bound = hidden_size**-0.5
        self.start = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, inputs]`` to ``[batch, time, hidden_size]``."""
        inputs = self.input(steps)
        output = inputs[:, 0] + self.start
        outputs = [output]
        for step in range(1, inputs.shape[1]):
            output = inputs[:, step] + self.feedback(self.dropout(torch.tanh(output)))
            outputs.append(output)
        return torch.stack(outputs, dim=1)


class McLaughlinRecurrence(nn.Sequential):
    """Stack of `McLaughlinLayer`: one is as published; more, each with its own W_i, are our addition."""

    def __init__(self, features: int, config: RecurrenceConfig) -> None:
        size = config.hidden_size
        super().__init__(
            McLaughlinLayer(features, size, config.dropout, project=features != size),
            *(McLaughlinLayer(size, size, config.dropout, project=True) for _ in range(config.layers - 1)),
        )


class GatedRecurrence(nn.Module):
    """GRU or LSTM with a linear path around it: ``o_t = W x_t + cell(x_1..x_t)``.

    Our interpretation, after the linear output of McLaughlin's cell: the gated cell adds to the frame's
    feature and so cannot clip its range. W is the identity if input and output have the same length.
    """

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], features: int, config: RecurrenceConfig) -> None:
        super().__init__()
        size = config.hidden_size
        dropout = config.dropout if config.layers > 1 else 0.0
        self.cell = cell(features, size, config.layers, dropout=dropout, batch_first=True)
        self.around = nn.Identity() if features == size else nn.Linear(features, size, bias=False)

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, features]`` to ``[batch, time, hidden_size]``."""
        output: Tensor = self.around(steps) + self.cell(steps)[0]
        return output


class BothDirections(nn.Module):
    """Mean of two recurrences, one of which reads the sequence from its end.

    Our interpretation: each has its own weights in all layers, and their mean keeps the length and scale of
    a single one.
    """

    def __init__(self, forwards: nn.Module, backwards: nn.Module) -> None:
        super().__init__()
        self.forwards, self.backwards = forwards, backwards

    def forward(self, steps: Tensor) -> Tensor:
        """Map ``[batch, time, features]`` to ``[batch, time, hidden_size]``."""
        output: Tensor = (self.forwards(steps) + self.backwards(steps.flip(1)).flip(1)) / 2
        return output


def build_recurrence(features: int, config: RecurrenceConfig) -> nn.Module:
    """Build the recurrence that maps ``[batch, time, features]`` to ``[batch, time, hidden_size]``."""
    if config.direction == "both":
        return BothDirections(_one_direction(features, config), _one_direction(features, config))
    return _one_direction(features, config)


def _one_direction(features: int, config: RecurrenceConfig) -> nn.Module:
    match config.cell:
        case "rnn":
            return McLaughlinRecurrence(features, config)
        case "gru":
            return GatedRecurrence(nn.GRU, features, config)
        case "lstm":
            return GatedRecurrence(nn.LSTM, features, config)
