"""Split of identities into training, validation and test, and checks that no identity is in two of them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.data.config import DataConfig, SetConfig
from trainables.data.packing import Pack
from trainables.data.sources import at_field, check_cache, read_set, set_config
from trainables.data.tracklet import DISTRACTOR, JUNK, Split, Tracklet
from trainables.data.walkers import layouts
from trainables.errors import DataError

_ONE_NUMBERING = frozenset({"mars", "market1501"})
"""Layouts in which equal numbers are the same identity.

From the paper (Zheng et al., ECCV 2016, abstract): MARS is "a video extension of the Market-1501 dataset".
Our interpretation: it kept the numbers. By them, 48.3 % of its test identities are training identities of
Market-1501.
"""

_FEWEST = 2
"""Smallest number of identities of training and of validation: with one there is nothing to compare."""


def check(config: DataConfig) -> int:
    """Check the data as far as possible without decoding a frame. Writes nothing.

    Returns:
        Number of training identities that several cameras have seen, without those for validation.

    Raises:
        DataError: a field is not valid; the message is one line that begins with the field.
    """
    check_cache(config)
    used = {"sequences": (config.sequences,), "images": config.images, "targets": config.targets}
    for role, names in used.items():
        for name in names:
            _check_role(config, role, name)
    _check_leak(config)
    extents = {name: _extent(config, name) for names in used.values() for name in names}
    for name, extent in extents.items():
        if extent.splits > 1:
            _check_split(name, config.split, extent.splits)
    for name in config.targets:
        if extents[name].test == 0:
            raise DataError(f"data.targets: {name!r} has no test part; expected a set with query and gallery")
        if not extents[name].scorable:
            raise DataError(
                f"data.targets: no query of {name!r} has a match in another camera of the gallery; expected a"
                " set with identities in several cameras"
            )
    trained = extents[config.sequences]
    held = {identity for other in holders(config, config.sequences) for identity in extents[other].test_names}
    count = trained.train - len(trained.train_names & held)
    return count - _validation_size(config.sequences, count, config.validation)


def holders(config: DataConfig, name: str) -> tuple[str, ...]:
    """Return the sets whose validation and test identities must be dropped from training on ``name``.

    Empty unless ``shared_identities`` is ``drop``.
    """
    if config.shared_identities == "refuse":
        return ()
    used = dict.fromkeys((config.sequences, *config.targets))
    return tuple(other for other in used if other != name and _share_numbers(config, name, other))


def held_back(config: DataConfig, name: str, packs: Mapping[str, Pack], seed: int) -> frozenset[str]:
    """Return the identities of a set that must not train because its `holders` validate or test them.

    ``packs`` contains the packs of the holders; ``seed`` is that of `training_part`.
    """
    held: set[str] = set()
    for other in holders(config, name):
        pack = packs[other]
        if other in config.targets:
            split = split_of(pack, config.split)
            held.update(pack.identities[np.array([*split.query, *split.gallery], np.int64)].tolist())
        if other == config.sequences:
            without = held_back(config, other, packs, seed)
            _, query, _ = training_part(pack, config.split, config.validation, seed, without)
            held.update(pack.identities[query].tolist())
    return frozenset(held - {JUNK, DISTRACTOR})


def split_of(pack: Pack, split: int) -> Split:
    """Return split number ``split`` of a set, or its only split if it has a fixed protocol, such as MARS."""
    if len(pack.splits) == 1:
        return pack.splits[0]
    _check_split(pack.name, split, len(pack.splits))
    return pack.splits[split]


def training_part(
    pack: Pack, split: int, validation: float, seed: int, without: Collection[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide the train part of a split into training and validation identities; the test part is not used.

    Only identities seen by several cameras can be in validation. In a set of two cameras, the first camera
    is the query side and the second the gallery. With more cameras, the first tracklet of an identity in each
    camera is a query, and every validation tracklet is in the gallery: scoring must ignore gallery tracklets
    with the identity and camera of the query.

    Args:
        pack: the set.
        split: number of the split.
        validation: fraction of the identities for validation.
        seed: seed of the draw.
        without: identities that are in neither part.

    Returns:
        Sorted tracklet indices ``(train, validation query, validation gallery)``. No identity is in both
        training and validation; junk and distractors are in neither.

    Raises:
        DataError: the split does not exist, or too few identities are left for training or validation.
    """
    part = np.array(split_of(pack, split).train, np.int64)
    part = np.sort(part[~np.isin(pack.identities[part], (JUNK, DISTRACTOR, *without))])
    identities, cameras = pack.identities[part], pack.cameras[part]
    candidates = _seen_twice(identities, cameras)
    count = _validation_size(pack.name, len(candidates), validation)
    validating = np.random.default_rng([seed, split]).permutation(candidates)[:count]
    held = np.isin(identities, validating)
    views = np.unique(cameras)
    if len(views) == 2:
        return part[~held], part[held & (cameras == views[0])], part[held & (cameras == views[1])]
    _, first = np.unique(np.stack([identities[held], cameras[held]]), axis=1, return_index=True)
    return part[~held], part[held][np.sort(first)], part[held]


@dataclass(frozen=True, slots=True)
class _Extent:
    """Number of splits, and of train and test identities in the configured one.

    The names are empty for generated sets of a layout that is not in `_ONE_NUMBERING`.
    """

    splits: int
    train: int
    test: int
    train_names: frozenset[str] = frozenset()
    test_names: frozenset[str] = frozenset()
    scorable: bool = True
    """Whether a query has a match in another camera."""


def _extent(config: DataConfig, name: str) -> _Extent:
    source = config.sets[name]
    if source.generate is not None:
        with at_field(f"data.sets.{name}.generate"):
            layouts.check(source.layout, source.generate)
        names = (
            layouts.split_identities(source.layout, source.generate)
            if source.layout in _ONE_NUMBERING
            else ()
        )
        return _Extent(*layouts.extent(source.layout, source.generate), *names)
    assert source.folder is not None  # SetConfig holds exactly one of the two
    data_set = read_set(name, source, source.folder)
    split = data_set.splits[min(config.split, len(data_set.splits) - 1)]
    train = [data_set.tracklets[i] for i in split.train]
    trained = _seen_twice(np.array([t.identity for t in train]), np.array([t.camera for t in train]))
    queries, gallery = (
        {data_set.tracklets[i].identity for i in part} for part in (split.query, split.gallery)
    )
    names = frozenset(trained.tolist()), frozenset(queries | gallery)
    scorable = _has_match(*([data_set.tracklets[i] for i in part] for part in (split.query, split.gallery)))
    return _Extent(len(data_set.splits), len(trained), len(queries), *names, scorable)


def _has_match(query: Iterable[Tracklet], gallery: Iterable[Tracklet]) -> bool:
    """Return whether any query has a match in another camera."""
    cameras: dict[str, set[str]] = {}
    for tracklet in gallery:
        cameras.setdefault(tracklet.identity, set()).add(tracklet.camera)
    return any(
        cameras.get(tracklet.identity, set()) - {tracklet.camera}
        for tracklet in query
        if tracklet.identity not in (JUNK, DISTRACTOR)
    )


def _seen_twice(identities: NDArray[np.str_], cameras: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the sorted identities that more than one camera has seen."""
    if len(identities) == 0:
        return identities
    seen = np.unique(np.stack([identities, cameras]), axis=1)[0]
    names, views = np.unique(seen, return_counts=True)
    return names[(views > 1) & ~np.isin(names, (JUNK, DISTRACTOR))]


def _validation_size(name: str, identities: int, validation: float) -> int:
    """Return the number of validation identities."""
    if validation == 0:
        return 0
    count = max(_FEWEST, round(validation * identities))
    if identities - count < _FEWEST:
        raise DataError(
            f"data.validation: {validation:g} of the {identities} training identities of {name!r} in several"
            f" cameras leaves {max(0, identities - count)} for training; expected at least {_FEWEST} in each"
            " part"
        )
    return count


def _check_split(name: str, split: int, splits: int) -> None:
    if split >= splits:
        valid = "only 0" if splits == 1 else f"0 to {splits - 1}"
        raise DataError(f"data.split: {split} is out of range; set {name!r} has {valid}")


def _check_role(config: DataConfig, role: str, name: str) -> None:
    """Refuse names without a set and sets of the wrong kind."""
    source = set_config(config, name, role)
    if role not in ("targets", f"{source.kind}s"):
        valid = [other for other, its in config.sets.items() if role == f"{its.kind}s"]
        raise DataError(
            f"data.{role}: {name!r} has {source.kind}s (layout {source.layout}); sets under data.sets with"
            f" {role}: {', '.join(valid) or 'none'}"
        )


def _check_leak(config: DataConfig) -> None:
    """Refuse to train on identities that another set, from the same source, validates or tests."""
    if len(set(config.images)) < len(config.images):
        raise DataError(f"data.images: {', '.join(config.images)} names a set twice; name each set once")
    trained = (config.sequences, *config.images)
    for name in trained:
        for other in dict.fromkeys((config.sequences, *config.targets)):
            if other == name:
                continue  # the splits of one set keep its identities apart
            ours, theirs = config.sets[name], config.sets[other]
            if _share_numbers(config, name, other):
                if config.shared_identities == "refuse":
                    raise DataError(
                        f"data.shared_identities: {name!r} is for training and {other!r} for validation or"
                        " test, but MARS and Market-1501 share identities; write data.shared_identities: drop"
                        f" to train on {name!r} without the shared identities"
                    )
            elif _origin(ours) == _origin(theirs):
                raise DataError(
                    f"data: {name!r} is for training and {other!r} for validation or test, but both are"
                    f" {_origin(ours)}; use one set for both, or sets with different identities"
                )


def _share_numbers(config: DataConfig, name: str, other: str) -> bool:
    """Return whether equal numbers are the same identity in two sets of different layouts."""
    ours, theirs = config.sets[name], config.sets[other]
    seeds = {its.generate.seed if its.generate else None for its in (ours, theirs)}
    return {ours.layout, theirs.layout} == _ONE_NUMBERING and len(seeds) == 1


def _origin(source: SetConfig) -> str:
    """Return the seed or folder that determines the identities of a set."""
    if source.generate is not None:
        return f"drawn from seed {source.generate.seed}"
    return f"read from {Path(source.folder or '').expanduser().resolve()}"
