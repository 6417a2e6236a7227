"""Training on sequences alone."""

from torch import Tensor

from trainables.methods.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.losses import LossConfig, ModalityLoss
from trainables.methods.method import Method
from trainables.network.embedder import NetworkConfig, SequenceEmbedder


class SequenceMethod(Method):
    """McLaughlin et al., CVPR 2016: verification and identification of sequences; images are ignored."""

    def __init__(self, network: NetworkConfig, loss: LossConfig, identities: int) -> None:
        super().__init__()
        self.embedder = SequenceEmbedder(network)
        self.video = ModalityLoss(self.embedder.dimension, identities, loss)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video`` and ``loss``, which are the same."""
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        return {"loss": video, "video": video}
