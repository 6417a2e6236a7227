"""What every training method offers to the loop."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trainables.methods.batch import Batch
from trainables.network.embedder import SequenceEmbedder


class Method(nn.Module, ABC):
    """The embedder with all that only training needs; the loop wraps it in DistributedDataParallel.

    Every parameter takes part in every step: a module whose terms all weigh 0 is never made.
    """

    embedder: SequenceEmbedder

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalar losses of the global batch, unweighted, and their weighted total as ``loss``.

        ``batch`` is this worker's share, of the same size on every worker. Every worker returns the same
        values, and the mean of their gradients is the gradient on the global batch.
        """
