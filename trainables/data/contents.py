"""What sets contain, however they are packed: a hash of a test part, and names of identities."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import filelock
import numpy as np

from trainables.data.config import DataConfig, SetConfig
from trainables.data.parts import DataParts, Part
from trainables.data.readers import READERS
from trainables.data.sources import fingerprint, read_set
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Frame, Protocol
from trainables.data.walkers import layouts

_BY_CONTENT = frozenset({"images", "sequences"})
"""Layouts whose identities have names of the user's own, which mean nothing in another folder."""

_NUMBERING = {"market1501": "mars"}
"""Layout whose identities are numbered as in another one; see `trainables.data.splits`."""

Identities = dict[str, list[str]]
"""Names of identities by numbering. Equal names in one numbering are the same identity."""


def content_hash(config: DataConfig, name: str) -> str:
    """Return a hash of the test part of a set: its labels, and the bytes of its frames.

    It does not depend on the place of the folder, nor on the size of packed frames. The hash of a folder is
    kept in the cache as long as its files are the same.
    """
    source = config.sets[name]
    options = source.options.model_dump_json(exclude_defaults=True)
    if source.generate is not None:
        return _hash([layouts.description(source.layout, source.generate), options, str(config.split)])
    assert source.folder is not None  # SetConfig holds exactly one of the two
    data_set = read_set(name, source, source.folder)
    key = _hash([fingerprint(data_set), options, str(config.split)])
    kept = config.cache_folder / "contents" / key
    with filelock.FileLock(_prepared(kept).with_suffix(".lock")):
        if not kept.exists():
            kept.write_text(_hash(_described(data_set, config.split)))
        return kept.read_text()


def protocol_of(source: SetConfig) -> Protocol:
    """Return the protocol that scores the test part of a set, without looking at its frames."""
    if source.layout == "mars":
        return "mars"
    if source.layout == "cuhk03":
        old = getattr(source.options, "protocol", "old") == "old"
        return "single-gallery-shot" if old else "whole-gallery"
    if source.layout in READERS or source.folder is None:
        return "whole-gallery"
    return read_set("target", source, source.folder).protocol


def identities_trained(data: DataParts, images: Iterable[str]) -> Identities:
    """Return the identities that the training parts of a config contain, by numbering.

    An identity that is known by its frames only has a name for each of its tracklets, because the tested set
    may contain only some of them.
    """
    names: dict[str, set[str]] = {}
    for name, part in [
        (data.config.sequences, data.train()),
        *((name, data.images(name)) for name in images),
    ]:
        numbering, identities = _named(name, data.config.sets[name], [part])
        names.setdefault(numbering, set()).update(*identities)
    return {numbering: sorted(found) for numbering, found in names.items()}


def identities_tested(data: DataParts, name: str) -> Identities:
    """Return the identities of the test part of a target, by numbering: one name for each."""
    numbering, identities = _named(name, data.config.sets[name], data.test(name))
    return {numbering: sorted({min(names) for names in identities})}


def _named(name: str, source: SetConfig, parts: Iterable[Part]) -> tuple[str, list[set[str]]]:
    """Return the numbering of the identities of ``parts``, and the names of each identity."""
    found = np.unique(np.concatenate([part.identities for part in parts]))
    identities = [str(identity) for identity in found if identity not in (JUNK, DISTRACTOR)]
    numbering = _numbering(source)
    if numbering is not None:
        return numbering, [{identity} for identity in identities]
    assert source.folder is not None
    names: dict[str, set[str]] = {identity: set() for identity in identities}
    for tracklet in read_set(name, source, source.folder).tracklets:
        if tracklet.identity in names:
            names[tracklet.identity].add(_hash([frame_bytes(tracklet.frames[0])]))
    return "first frames", list(names.values())


def _numbering(source: SetConfig) -> str | None:
    """Return what gives the identities of a set their names; None where only their frames tell."""
    family = _NUMBERING.get(source.layout, source.layout)
    seed = None if source.generate is None else source.generate.seed
    if source.folder is not None and (marker := source.folder / layouts.MARKER).is_file():
        seed = json.loads(marker.read_text()).get("seed")  # walkers that were written into a folder
    if seed is not None:
        return f"{family}, generated from seed {seed}"
    return family if source.layout in READERS and source.layout not in _BY_CONTENT else None


def _described(data_set: DataSet, split: int) -> Iterable[bytes | str]:
    chosen = data_set.splits[0 if len(data_set.splits) == 1 else split]
    for role, part in (("query", chosen.query), ("gallery", chosen.gallery)):
        for index in part:
            tracklet = data_set.tracklets[index]
            yield f"{role} {tracklet.identity} {tracklet.camera} {len(tracklet.frames)} {data_set.protocol}"
            yield from map(frame_bytes, tracklet.frames)


def frame_bytes(frame: Frame) -> bytes:
    """Return the content of a frame: the bytes of its file, or of its object in an HDF5 file."""
    if frame.key is None:
        return frame.path.read_bytes()
    import h5py  # which the other layouts do not need

    with h5py.File(frame.path) as file:
        return bytes(np.asarray(file[frame.key]).tobytes())


def _hash(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _prepared(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
