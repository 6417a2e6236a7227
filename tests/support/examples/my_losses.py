"""my_losses.py, for method: my_losses:CompactMethod"""

from torch import Tensor

from trainables.methods import Batch, MethodConfig
from trainables.methods.gather import gather
from trainables.methods.sequence import SequenceMethod


class CompactMethod(SequenceMethod):
    """Sequences alone, with a loss that pulls the features of an identity towards their mean."""

    possible_terms = (*SequenceMethod.possible_terms, "compact")  # under any config

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str]:
        return super().terms(config) | {"compact"}  # in every step with this config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = gather(self.embedder(batch.sequences))  # of all workers, [sequence, feature]
        identities = gather(batch.sequence_identities)
        same = (identities[:, None] == identities).to(features.dtype)
        means = same @ features / same.sum(dim=1, keepdim=True)
        video = self.video(features, identities)
        compact = (features - means).square().sum(dim=1).mean()
        return {"loss": video + 0.1 * compact, "video": video, "compact": compact}
