"""One worker's share of a global batch."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences, and still images if the method uses them, with RGB in 0..1.

    Each modality numbers its training identities from 0; the numbers of one do not apply to the other.
    """

    sequences: Tensor
    """``[sequence, time, 3 or 5, height, width]`` float; channels 4 and 5 are flow in pixels per frame."""
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
        """Return the images and their identities.

        Raises:
            ValueError: the batch has no images.
        """
        if self.images is None or self.image_identities is None:
            raise ValueError("the method needs images in every batch, but this batch has none (data.images)")
        return self.images, self.image_identities

    def to(self, device: str | torch.device) -> "Batch":
        """Return the batch on ``device``."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: item.to(device) for name, item in tensors.items() if item is not None})
