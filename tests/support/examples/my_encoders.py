"""my_encoders.py, for encoder.name: my_encoders:PatchEncoder"""

from pydantic import Field
from torch import nn

from trainables.network.components import Options
from trainables.network.encoders import EncoderConfig, NeckEncoder


class PatchOptions(Options):
    channels: int = Field(64, ge=8, le=1024, description="channels of the spatial map")


class PatchEncoder(NeckEncoder):
    """One convolution over patches of 8 x 8 pixels; an exported model contains this file."""

    Options = PatchOptions

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        width = config.options.channels
        layers = nn.Sequential(nn.Conv2d(channels, width, 8, stride=8), nn.ReLU())
        super().__init__(config, layers, map_channels=width)
