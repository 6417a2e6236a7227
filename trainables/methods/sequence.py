"""Training on sequences alone."""

from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.method import Method, MethodConfig


class SequenceMethod(Method):
    """McLaughlin et al., CVPR 2016: verification and identification of sequences, no images."""

    uses_images = False

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """See `Method`."""
        return {"video"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video`` and ``loss``, which are the same."""
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        return {"loss": video, "video": video}
