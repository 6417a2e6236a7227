"""Joint training on sequences and on still images that are shown as sequences."""

from abc import abstractmethod

from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.losses import ModalityLoss
from trainables.methods.method import Method, MethodConfig, idle
from trainables.network.normalisation import frozen_statistics


class JointMethod(Method):
    """``video + w_pseudo pseudo``: losses of either modality on a shared CNN and RNN, trained jointly.

    Known: shared weights, losses computed independently, joint training. Our reading: that images use batch
    statistics of their own and leave the running ones to sequences.
    """

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__(config, sequences, images)
        self.pseudo = None
        if config.alignment.weights.pseudo > 0:
            self.pseudo = ModalityLoss(self.embedder.dimension, images, config.loss)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """See `Method`."""
        return {"video", "pseudo"} if config.alignment.weights.pseudo > 0 else {"video"}

    @abstractmethod
    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Map stills ``[image, 3, height, width]`` to pseudo sequences ``[image, length, features]``."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video``, ``pseudo`` where it weighs more than 0, and the total, ``loss``."""
        if self.phase == 0:
            return self.images_alone(batch)
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        terms = {"video": video}
        if self.pseudo is not None:
            images, identities = batch.stills()
            terms["pseudo"] = self.pseudo(self.pseudo_features(images), gather(identities))
        return {"loss": self.total(terms), **terms}

    def images_alone(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``pseudo``, and the same as ``loss``: identities of images, before sequences come in.

        Running statistics follow the images here: the next phase brings those of sequences.
        """
        assert self.pseudo is not None, "images weigh more than 0 where they are trained on alone"
        images, identities = batch.stills()
        pseudo = self.pseudo(gather(self.embedder.aggregate(self.pseudo_steps(images))), gather(identities))
        return {"loss": pseudo + idle(self), "pseudo": pseudo}

    def pseudo_features(self, images: Tensor) -> Tensor:
        """Features ``[image, dimension]`` of the pseudo sequences of all workers' ``images``."""
        with frozen_statistics(self.embedder):
            return gather(self.embedder.aggregate(self.pseudo_steps(images)))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of ``terms``; ``video`` weighs 1."""
        weights = self.config.alignment.weights
        loss = terms["video"]
        for name, term in terms.items():
            if name == "pseudo":
                loss = loss + self.config.alignment.pseudo_weight(self.progress) * term
            elif name != "video":
                loss = loss + getattr(weights, name) * term
        return loss


class StaticMethod(JointMethod):
    """Joint training, each image shown as a motionless sequence: what alignment has to beat."""

    def pseudo_steps(self, images: Tensor) -> Tensor:
        """Hold each image still."""
        return self.embedder.hold(self.embedder.spatial(images), self.config.alignment.length)
