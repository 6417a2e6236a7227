"""Preprocessing of raw RGB frames for an encoder: size, colour space, normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))
"""BT.601 analogue YUV, the matrix of Torch7's ``image.rgb2yuv``."""


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize ``[frame, 3 or 5, height, width]``; flow becomes pixels per frame of the new size."""
    old_height, old_width = frames.shape[-2:]
    if (old_height, old_width) == (height, width):
        return frames
    frames = functional.interpolate(
        frames, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    if frames.shape[1] == 3:
        return frames
    scale = frames.new_tensor([1, 1, 1, width / old_width, height / old_height])
    return frames * scale.view(1, 5, 1, 1)


class McLaughlinNormalisation(nn.Module):
    """Normalisation of YUV and flow by the mean and the root of the standard deviation of each channel.

    The square root is that of the code released with McLaughlin et al. (CVPR 2016): the resulting variance is
    the previous standard deviation, not 1. Statistics are those of a single frame; a constant channel becomes
    0.
    """

    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor(RGB_TO_YUV), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Map RGB in 0..1 with flow appended, ``[frame, 3 or 5, height, width]``, to the same shape."""
        with torch.autocast(frames.device.type, enabled=False):  # bfloat16 would round before the division
            yuv = torch.einsum("oc,nchw->nohw", self.matrix, frames[:, :3])
            frames = yuv if frames.shape[1] == 3 else torch.cat([yuv, frames[:, 3:]], dim=1)
            variance, mean = torch.var_mean(frames, dim=(-2, -1), keepdim=True)
            return (frames - mean) / variance.clamp_min(1e-8) ** 0.25


class FixedNormalisation(nn.Module):
    """Normalisation of RGB by fixed means and standard deviations, by default those of ImageNet.

    Flow stays in pixels per frame.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        deviation: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Map RGB in 0..1 with flow appended, ``[frame, 3 or 5, height, width]``, to the same shape."""
        rgb = (frames[:, :3] - self.mean) / self.deviation
        return rgb if frames.shape[1] == 3 else torch.cat([rgb, frames[:, 3:]], dim=1)
