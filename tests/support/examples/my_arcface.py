"""my_arcface.py, for method: my_arcface:ArcFaceMethod"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods import MethodConfig
from trainables.methods.sequence import SequenceMethod


class ArcFace(nn.Module):
    """Cross-entropy with an additive angular margin (Deng et al., CVPR 2019)."""

    def __init__(self, dimension: int, identities: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(identities, dimension))

    def forward(self, features: Tensor, identities: Tensor) -> Tensor:  # [item, feature], [item]
        cosine = functional.normalize(features) @ functional.normalize(self.centres).T
        margins = 0.3 * functional.one_hot(identities, len(self.centres))
        angles = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos() + margins
        return functional.cross_entropy(16 * angles.cos(), identities)


class ArcFaceMethod(SequenceMethod):
    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__(config, sequences, images)
        self.video = ArcFace(self.embedder.dimension, sequences)
