"""A frame encoder so small that hundreds of trainings take minutes on one core."""

from torch import nn

from trainables.network.encoders import EncoderConfig, NeckEncoder


class TinyEncoder(NeckEncoder):
    """Three convolutions of stride 2."""

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        layers: list[nn.Module] = []
        for outputs in (16, 32, 64):
            layers += [
                nn.Conv2d(channels, outputs, 3, 2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        super().__init__(config, nn.Sequential(*layers), map_channels=channels)
