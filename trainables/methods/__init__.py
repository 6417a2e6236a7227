"""Training methods: one class in one file each."""

from collections.abc import Mapping

from trainables import components
from trainables.data.batch import Batch
from trainables.methods.alignment import AlignmentMethod
from trainables.methods.alignment_network import CrossModalityConfig
from trainables.methods.joint import StaticMethod
from trainables.methods.losses import LossConfig
from trainables.methods.method import Method, MethodConfig
from trainables.methods.pretrain import PretrainMethod
from trainables.methods.sequence import SequenceMethod
from trainables.network.normalisation import convert_batch_norm

__all__ = [
    "METHODS",
    "Batch",
    "CrossModalityConfig",
    "LossConfig",
    "Method",
    "MethodConfig",
    "build_method",
    "find_method",
]

METHODS: Mapping[str, type[Method]] = {
    "sequence": SequenceMethod,
    "pretrain": PretrainMethod,
    "static": StaticMethod,
    "alignment": AlignmentMethod,
}
"""Methods by their short name."""


def find_method(name: str) -> type[Method]:
    """Return the class of the method ``name``, a key of `METHODS` or ``package.module:Class``.

    Raises:
        ValueError: there is no such method.
    """
    return components.find("method", name, METHODS, Method)


def build_method(name: str, config: MethodConfig, sequences: int, images: int) -> Method:
    """Build the method with random weights; its batch norm uses the global batch.

    Args:
        name: name of the method, as in `find_method`.
        config: config of the method.
        sequences: number of training identities of the sequences.
        images: number of training identities of the images; 0 without images.
    """
    method_class = find_method(name)
    options = components.check_options(method_class, config.options)
    method = method_class(config.model_copy(update={"options": options}), sequences, images)
    convert_batch_norm(method)
    return method
