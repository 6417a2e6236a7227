"""Images first, then sequences."""

from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.joint import StaticMethod
from trainables.methods.method import MethodConfig, idle


class PretrainMethod(StaticMethod):
    """Learn identities of images, then fine-tune on sequences: the pipeline that the paper argues against.

    Known: the paper names it (after DeepID). Our reading: in the first phase images are shown as motionless
    sequences, so that the RNN is pre-trained too; in the second there are sequences alone, with a classifier
    of their own and a learning-rate schedule from its start.
    """

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """See `Method`."""
        return {"video"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``pseudo`` in the first phase, ``video`` in the second, and the same as ``loss``."""
        if self.phase == 0:
            return self.images_alone(batch)
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        return {"loss": video + idle(self), "video": video}

    def frames(self, batch: Batch) -> int:
        """Images in the first phase, frames of sequences in the second."""
        return super().frames(batch) if self.phase == 0 else batch.sequences.shape[:2].numel()
