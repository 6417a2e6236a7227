"""Joint training on sequences and on pseudo sequences generated from still images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.data.batch import Batch
from trainables.methods.alignment_network import CrossModalityAlignment, CrossModalityConfig
from trainables.methods.distribution import build_distribution
from trainables.methods.feature_level import FeatureAlignment
from trainables.methods.gather import gather
from trainables.methods.joint import JointMethod
from trainables.methods.method import MethodConfig
from trainables.methods.pixel_level import PixelAlignment
from trainables.network.embedder import SequenceEmbedder
from trainables.network.normalisation import frozen_statistics


class AlignmentMethod(JointMethod):
    """Cross-modality alignment (Song et al., ACM Multimedia 2017) on a shared CNN and RNN.

    From the paper: each image becomes a pseudo sequence, both branches share CNN and RNN, and their losses
    are computed independently and trained jointly.

    Our interpretation: every other term of the loss, ``video + w_pseudo pseudo + w_match match + w_motion
    motion + w_content content + w_distribution distribution``, and that ``distribution`` pulls pseudo
    sequences towards real ones, never the reverse.

    ``match`` is our addition. Only the identities of the sequences exist in both modalities, so the first and
    last frame of each sequence serve as still images. Their pseudo sequences join the real ones under one
    verification loss and one classifier: those of an identity must be near its real sequences in every
    camera, and farther from all other identities.
    """

    possible_terms = (*JointMethod.possible_terms, "match", "motion", "content", "distribution")

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__(config, sequences, images)
        self.weights = config.alignment.weights
        self.alignment = build_alignment(config.alignment, self.embedder)
        self.distribution = None
        if self.weights.distribution > 0:
            self.distribution = build_distribution(self.embedder.dimension, config.alignment.distribution)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """Return the names of the losses; see `Method`."""
        alignment = config.alignment
        own = set(AlignmentMethod.possible_terms) - set(JointMethod.possible_terms)
        own -= {"motion"} if not alignment.mgm or alignment.motion == "borrowed" else set()
        own -= {"content"} if not alignment.cgm else set()
        return super().terms(config) | {name for name in own if getattr(alignment.weights, name) > 0}

    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Generate pseudo sequences with the alignment network; see `JointMethod`."""
        steps: Tensor = self.alignment(self.embedder, images)
        return steps

    def pseudo_frames(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """Map stills to generated frames and their flow; None at the feature level, which has none.

        Shapes are those of `CrossModalityAlignment.generate`.
        """
        return self.alignment.generate(images)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video``, the applicable terms of weight above 0, and their weighted total ``loss``."""
        if self.phase == 0:
            return self.images_alone(batch)
        maps = self.embedder.spatial(batch.sequences.flatten(0, 1))
        shape = batch.sequences.shape[:2]
        steps = self.embedder.encoder.project(maps).view(*shape, -1)
        sequences = gather(self.embedder.aggregate(steps))
        identities = gather(batch.sequence_identities)
        terms = {"video": self.video(sequences, identities)}
        if self.weights.match > 0:
            ends = gather(self._of_ends(batch.sequences, maps))
            together = torch.cat([sequences, ends[:, 0], ends[:, 1]])
            terms["match"] = self.video(together, identities.repeat(3))
        if self.pseudo is not None or self.distribution is not None:
            terms |= self._of_images(batch, sequences.detach())
        if self.terms(self.config) & {"motion", "content"}:
            terms |= self.generator_terms(batch.sequences, maps.detach())
        return {"loss": self.total(terms), **terms}

    def _of_images(self, batch: Batch, sequences: Tensor) -> dict[str, Tensor]:
        images, identities = batch.stills()
        pseudo = self.pseudo_features(images)
        terms = {}
        if self.pseudo is not None:
            terms["pseudo"] = self.pseudo(pseudo, gather(identities))
        if self.distribution is not None:
            with torch.autocast(pseudo.device.type, enabled=False):
                terms["distribution"] = self.distribution(pseudo, sequences)
        return terms

    def _of_ends(self, frames: Tensor, maps: Tensor) -> Tensor:
        """Return features ``[sequence, 2, dimension]`` of the first and last frames' pseudo sequences."""
        ends = torch.tensor([0, frames.shape[1] - 1], device=frames.device)
        stills = frames[:, ends, :3].flatten(0, 1)
        with frozen_statistics(self.embedder):
            if frames.shape[2] == 3:
                own = maps.view(*frames.shape[:2], *maps.shape[1:])[:, ends].flatten(0, 1)
            else:
                stills = self.as_frames(stills)
                own = self.embedder.spatial(stills)
            steps = self.alignment.of_stills(self.embedder, stills, own)
            return self.embedder.aggregate(steps).view(len(frames), 2, -1)

    def generator_terms(self, frames: Tensor, maps: Tensor) -> dict[str, Tensor]:
        """Return ``motion`` and ``content``, if their weight is above 0; standing still scores 1.

        Args:
            frames: real sequences, ``[sequence, time, 3 or 5, height, width]``.
            maps: their spatial maps, ``[sequence * time, channel, rows, columns]``, without gradient.
        """
        shape = frames.shape[:2]
        if self.alignment.supervised_by_frames:
            empty = frames.new_empty(0)
            return self._weighted(self.alignment.supervise(frames, empty, empty, empty))
        with torch.no_grad(), frozen_statistics(self.embedder), without_dropout(self.embedder):
            features = stills = self.embedder.encoder.project(maps)
            if frames.shape[2] > 3:
                maps = self.embedder.spatial(self.as_frames(frames[:, :, :3].flatten(0, 1)))
                stills = self.embedder.encoder.project(maps)
        terms = self.alignment.supervise(
            frames, maps.view(*shape, *maps.shape[1:]), stills.view(*shape, -1), features.view(*shape, -1)
        )
        return self._weighted(terms)

    def _weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms whose weight is above 0."""
        return {name: term for name, term in terms.items() if getattr(self.weights, name) > 0}


def build_alignment(config: CrossModalityConfig, embedder: SequenceEmbedder) -> CrossModalityAlignment:
    """Build the alignment network that ``alignment.level`` names."""
    match config.level:
        case "feature":
            encoder = embedder.config.encoder
            return FeatureAlignment(config, encoder.features, embedder.encoder.map_channels)
        case "pixel":
            return PixelAlignment(config, embedder.config.height, embedder.config.width)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Disable dropout inside the context; other modules keep their mode."""
    dropouts = [child for child in module.modules() if isinstance(child, nn.Dropout) and child.training]
    for dropout in dropouts:
        dropout.eval()
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.train()
