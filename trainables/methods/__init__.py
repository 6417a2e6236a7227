"""Training methods: a new one is one class in one file, named by its dotted path or listed in ``METHODS``."""

import difflib
import importlib
import inspect

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

METHODS: dict[str, type[Method]] = {
    "sequence": SequenceMethod,
    "pretrain": PretrainMethod,
    "static": StaticMethod,
    "alignment": AlignmentMethod,
}
"""Every method that ``method`` may say, beside ``package.module:Class`` of one's own."""


def find_method(name: str) -> type[Method]:
    """The class of a method in ``METHODS``, or at ``package.module:Class``; ValueError says what is wrong."""
    if name in METHODS:
        return METHODS[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        nearest = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"no method {name!r}; {hint}expected {', '.join(METHODS)}, or package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever happens when somebody's module is imported
        reason = " ".join(str(error).split())
        raise ValueError(f"{name!r} names no method: {type(error).__name__}: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{name!r} names no subclass of trainables.methods.Method")
    if inspect.isabstract(found):
        lacks = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"{name!r} is no whole method: it lacks {lacks}")
    return found


def build_method(name: str, config: MethodConfig, sequences: int, images: int) -> Method:
    """Build the method with random weights; its batch norm counts the batch of all workers."""
    method = find_method(name)(config, sequences, images)
    convert_batch_norm(method)
    return method
