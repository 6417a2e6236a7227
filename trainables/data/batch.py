"""What one worker's share of a global batch looks like."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences, and still images where the method wants them; colours are RGB in 0..1.

    Identities number the training identities of their own modality from 0: the two never share a number
    space.
    """

    sequences: Tensor
    """``[sequence, time, 3 or 5, height, width]`` float; the last two are optical flow, pixels per frame."""
    sequence_identities: Tensor
    """``[sequence]`` long."""
    sequence_cameras: Tensor
    """``[sequence]`` long."""
    images: Tensor | None = None
    """``[image, 3, height, width]`` float."""
    image_identities: Tensor | None = None
    """``[image]`` long."""
    image_cameras: Tensor | None = None
    """``[image]`` long."""

    def stills(self) -> tuple[Tensor, Tensor]:
        """Images and their identities; raises ValueError when the batch has none."""
        if self.images is None or self.image_identities is None:
            raise ValueError("the method needs images in every batch, this one has none (data.images)")
        return self.images, self.image_identities

    def to(self, device: str | torch.device) -> "Batch":
        """Return the batch on another device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in moved.items() if value is not None})
