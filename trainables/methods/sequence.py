"""Training on sequences alone."""

from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.method import Method, MethodConfig


class SequenceMethod(Method):
    """Verification and identification of sequences, without images (McLaughlin et al., CVPR 2016)."""

    uses_images = False
    possible_terms = ("video",)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """Return the names of the losses; see `Method`."""
        return {"video"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``video`` and, equal to it, ``loss``."""
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        return {"loss": video, "video": video}
