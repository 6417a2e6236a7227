"""Joint training on sequences and on still images presented as sequences."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.flow_memory import build_still_flow, observe_flow
from trainables.methods.gather import gather
from trainables.methods.losses import ModalityLoss
from trainables.methods.method import Method, MethodConfig, idle
from trainables.network.normalisation import frozen_statistics


class JointMethod(Method):
    """Joint training of both modalities on a shared CNN and RNN, ``video + w_pseudo pseudo``.

    From the paper: shared weights, losses computed independently, joint training. Our interpretation: images
    are normalised by their own batch statistics and do not update the running ones, which describe sequences.
    """

    possible_terms: ClassVar[tuple[str, ...]] = ("video", "pseudo")

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__(config, sequences, images)
        self.still_flow = build_still_flow(config.alignment.still_flow, config.network)
        self.register_forward_pre_hook(_observe)
        self.pseudo = None
        if config.alignment.weights.pseudo > 0:
            self.pseudo = ModalityLoss(self.embedder.dimension, images, config.loss)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """Return the names of the losses; see `Method`."""
        return {"video", "pseudo"} if config.alignment.weights.pseudo > 0 else {"video"}

    @abstractmethod
    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Map stills to pseudo sequences ``[image, length, features]``.

        Stills are ``[image, 3 or 5, height, width]``; those without optical flow count as motionless.
        """

    def as_frames(self, images: Tensor) -> Tensor:
        """Add to stills ``[image, 3, height, width]`` the flow of ``alignment.still_flow``, if any."""
        if self.still_flow is None:
            return images
        return torch.cat([images, self.still_flow.draw(len(images))[:, 0].to(images.dtype)], dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video``, ``pseudo`` if its weight is above 0, and their weighted total ``loss``."""
        if self.phase == 0:
            return self.images_alone(batch)
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        terms = {"video": video}
        if self.pseudo is not None:
            images, identities = batch.stills()
            terms["pseudo"] = self.pseudo(self.pseudo_features(images), gather(identities))
        return {"loss": self.total(terms), **terms}

    def images_alone(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``pseudo`` and, equal to it, ``loss`` for the phase that trains on images alone.

        Images update the running statistics here; the next phase replaces them by those of sequences.
        """
        assert self.pseudo is not None, "a phase on images alone needs alignment.weights.pseudo above 0"
        images, identities = batch.stills()
        features = gather(self.embedder.aggregate(self.pseudo_steps(self.as_frames(images))))
        pseudo = self.pseudo(features, gather(identities))
        return {"loss": pseudo + idle(self), "pseudo": pseudo}

    def pseudo_features(self, images: Tensor) -> Tensor:
        """Return features ``[image, dimension]`` of the pseudo sequences of all workers' ``images``."""
        with frozen_statistics(self.embedder):
            return gather(self.embedder.aggregate(self.pseudo_steps(self.as_frames(images))))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of ``terms``; ``video`` weighs 1."""
        weights = self.config.alignment.weights
        loss = terms["video"]
        for name, term in terms.items():
            if name == "pseudo":
                loss = loss + self.config.alignment.pseudo_weight(self.progress) * term
            elif name != "video":
                loss = loss + getattr(weights, name) * term
        return loss


class StaticMethod(JointMethod):
    """Joint training with each image as a motionless sequence: the baseline of alignment."""

    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Repeat each image's feature at every step."""
        return self.embedder.hold(self.embedder.spatial(images), self.config.alignment.length)


def _observe(method: JointMethod, inputs: tuple[Batch]) -> None:
    """Note the optical flow of the sequences that a step trains on."""
    if method.training and method.config.network.flow != "none":
        observe_flow(method, inputs[0].sequences)
