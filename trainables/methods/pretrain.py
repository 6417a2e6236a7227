"""Pre-training on images, then fine-tuning on sequences."""

from torch import Tensor

from trainables.data.batch import Batch
from trainables.methods.gather import gather
from trainables.methods.joint import StaticMethod
from trainables.methods.method import MethodConfig, idle


class PretrainMethod(StaticMethod):
    """Pre-training on image identities, then fine-tuning on sequences.

    From the paper: it names this pipeline (after DeepID) and argues against it. Our interpretation: the first
    phase presents images as motionless sequences, so that the RNN is pre-trained too; the second phase uses
    sequences alone, with a new classifier and a restarted learning-rate schedule.
    """

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        """Return the names of the losses; see `Method`."""
        return {"video"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``pseudo`` in the first phase, ``video`` in the second, and ``loss``, equal to either."""
        if self.phase == 0:
            return self.images_alone(batch)
        video = self.video(gather(self.embedder(batch.sequences)), gather(batch.sequence_identities))
        return {"loss": video + idle(self), "video": video}

    def frames(self, batch: Batch) -> int:
        """Return the number of images in the first phase, of sequences' frames in the second."""
        return super().frames(batch) if self.phase == 0 else batch.sequences.shape[:2].numel()
