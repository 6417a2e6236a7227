"""What is checked of a config before anything is trained."""

import functools
from collections.abc import Sequence

import torch

from trainables.config import AlignmentConfig
from trainables.errors import DataError, at_field, describe_raised
from trainables.evaluation.pseudo import PSEUDO_METRICS, pseudo_metrics
from trainables.evaluation.validation import OWN, SCORES, metric_name
from trainables.export.encoder_module import check_portable, is_outside
from trainables.methods import find_method
from trainables.network.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder, check_shapes
from trainables.network.weights import check_weights

_MEASURES = (
    *(
        "data.split.",
        "data.validation.",
        "data.fold.",
        "data.folds.",
        "data.validate.",
        "data.validate_identities.",
    ),
    *("data.targets.", "data.shared_identities.", "evaluation."),
)
"""Paths of the config, or groups of them, that decide how a trial is scored."""

_LOSS_WEIGHTS = ("loss.", "alignment.weights.")

_PSEUDO = frozenset(
    {"alignment.length", "alignment.schedule", "alignment.still_flow", "alignment.weights.pseudo"}
)

_USED_ALIGNMENT: dict[str, frozenset[str]] = {
    "sequence": frozenset(),
    "pretrain": _PSEUDO,
    "static": _PSEUDO,
}
"""Paths below ``alignment`` that a method uses, for methods that do not use all."""


def check_training(config: AlignmentConfig, workers: int, metrics: Sequence[str], identities: int) -> None:
    """Check that ``workers`` workers can train with a config and report ``metrics``.

    Args:
        config: the config.
        workers: number of workers.
        metrics: metrics that every epoch must report.
        identities: number of training identities, not counting those for validation.

    Raises:
        DataError: a field is not valid; the message is one line that begins with the field.
    """
    config.batch.check_shares(workers, images=bool(config.image_sets))
    _check_encoder(config)
    if config.batch.identities > identities:
        raise DataError(
            f"batch.identities: {config.batch.identities} is too many; {config.data.sequences!r} has"
            f" {identities} training identities, not counting those for validation"
        )
    own = {metric_name(OWN, score) for score in SCORES} | set(PSEUDO_METRICS)
    if config.data.validation == 0 and (lost := [name for name in metrics if name in own]):
        raise DataError(
            f"data.validation: 0 leaves no identity for validation, so {lost[0]} is never reported; write"
            " for example 0.25"
        )
    measured = pseudo_metrics(find_method(config.method), config.method_config)
    if lost := [name for name in metrics if name in PSEUDO_METRICS and name not in measured]:
        raise DataError(
            f"method: {config.method!r} does not report {lost[0]} with these settings of alignment, but"
            f" {', '.join(sorted(measured))}"
        )
    if config.losses is not None:
        reported = ["train/loss", *(f"train/{name}" for name in sorted(config.losses))]
        if lost := [name for name in metrics if name.startswith("train/") and name not in reported]:
            raise DataError(
                f"method: {config.method!r} does not report {lost[0]} in every epoch; with these"
                f" alignment.weights and pretrain_epochs its losses are {', '.join(reported)}"
            )


def check_search(config: AlignmentConfig, paths: Sequence[str], metrics: Sequence[str]) -> None:
    """Check that a search of ``paths`` finds better models; see `check_training` for the other arguments.

    Raises:
        DataError: a path changes how trials are measured, or has no effect.
    """
    for path in paths:
        group = f"{path}."
        if path == "seed":
            raise DataError(
                "seed: the search would pick the luckiest training; compare several seeds with"
                " orchestrator.compare"
            )
        if group.startswith(_MEASURES):
            raise DataError(
                f"{path}: it changes how a trial is scored, so trials could not be compared; fix it under"
                " config"
            )
        if group.startswith(_LOSS_WEIGHTS) and (own := [name for name in metrics if "train/" in name]):
            raise DataError(f"{path}: it scales the objective {own[0]} itself; optimize for example val/mAP")
        if path == "alignment.length" and (own := [name for name in metrics if name in PSEUDO_METRICS]):
            raise DataError(f"{path}: it changes what {own[0]} measures; fix it under config")
        used = None if "method" in paths else _USED_ALIGNMENT.get(config.method)
        if used is not None and group.startswith("alignment.") and path not in used:
            raise DataError(f"{path}: it has no effect on method {config.method}; remove it")


def _check_encoder(config: AlignmentConfig) -> None:
    """Raise ``DataError`` if the encoder does not fit the frames or its weights, or cannot be exported."""
    encoder_config, network = config.encoder, config.network
    if encoder_config.name in ENCODERS and encoder_config.weights is None:
        return
    with at_field("encoder.name"):
        check_portable(encoder_config.name)
        description = encoder_config.model_dump_json(include={"name", "options", "features"})
        try:
            encoder = _encoder(description, network.channels, network.height, network.width)
        except ValueError:
            raise
        except Exception as error:
            if not is_outside(encoder_config.name):
                raise
            raise DataError(f"{encoder_config.name} failed: {describe_raised(error)}") from error
    if encoder_config.weights is not None:
        with at_field("encoder.weights"):
            check_weights(encoder, encoder_config.weights)


@functools.lru_cache(maxsize=4)
def _encoder(description: str, channels: int, height: int, width: int) -> Encoder:
    """Build an encoder for checks; cached, because a sweep checks many configs with the same encoder.

    An encoder from outside of this project also encodes two frames.
    """
    config = EncoderConfig.model_validate_json(description)
    encoder = build_encoder(config, channels, height, width).eval()
    if is_outside(config.name):
        with torch.no_grad():
            check_shapes(encoder, torch.zeros(2, channels, height, width), config.features)
    return encoder
