"""Records of the sets that a training uses."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainables.data.parts import DataParts
from trainables.data.splits import holders
from trainables.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataSetRecord:
    """Data set that a training used, in one role."""

    name: str
    role: str
    """``train``, ``target``, ``images`` or ``validate``."""
    source: str
    digest: str
    counts: dict[str, int]


def data_set_records(data: DataParts, images: Sequence[str]) -> Iterator[DataSetRecord]:
    """Yield a record of each set in each role.

    Args:
        data: the parts of every set that the config uses.
        images: names of the sets whose images train.
    """
    config = data.config
    for name in (config.sequences, *images, *config.validate_on):
        _log_dropped(data, name)
    yield _record(data, "train", config.sequences)
    for role, names in (("target", config.targets), ("images", images), ("validate", config.validate_on)):
        for name in names:
            yield _record(data, role, name)


def check_validation(data: DataParts) -> None:
    """Raise ``DataError`` for a set in ``validate`` of which too few identities are left."""
    for name, (query, gallery) in data.cross_validation().items():
        if len(set(query.identities) & set(gallery.identities)) < 2:
            raise DataError(f"data.validate: too few identities of {name!r} are left to validate on")


def _log_dropped(data: DataParts, name: str) -> None:
    if holding := holders(data.config, name):
        dropped = data.dropped(name)
        unit = "images" if dropped.pack.kind == "image" else "tracklets"
        _log.info(
            "%s: dropped %s identities with %s %s, because %s validates or tests them",
            name,
            f"{len(np.unique(dropped.identities)):,}",
            f"{len(dropped.tracklets):,}",
            unit,
            " and ".join(holding),
        )


def _record(data: DataParts, role: str, name: str) -> DataSetRecord:
    source, pack = data.config.sets[name], data.packs[name]
    origin = f"generated {source.generate.model_dump_json()}" if source.generate else str(source.folder)
    counts = {
        "identities": len(np.unique(pack.identities)),
        "cameras": len(np.unique(pack.cameras)),
        "tracklets": len(pack),
        "frames": int(pack.lengths.sum()),
    }
    if role == "validate":
        counts["validation identities"] = len(np.unique(data.cross_validation()[name][0].identities))
    if role != "target" and holders(data.config, name):
        dropped = data.dropped(name)
        counts["dropped identities"] = len(np.unique(dropped.identities))
        counts["dropped tracklets"] = len(dropped.tracklets)
    return DataSetRecord(
        name=name,
        role=role,
        source=f"{source.layout}, {origin}",
        digest=pack.digest,
        counts=counts,
    )
