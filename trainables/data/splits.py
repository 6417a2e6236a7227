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

CROSS = "cross"
"""Name, among those of sets in metrics, of the mean over the sets in ``validate``."""

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
    used = {
        "sequences": (config.sequences,),
        "images": config.images,
        "targets": config.targets,
        "validate": config.validate_on,
    }
    for role, names in used.items():
        for index, name in enumerate(names):
            if name in names[:index]:
                raise DataError(f"data.{role}: {name!r} is named twice; name each set once")
            _check_role(config, role, name)
    _check_validate(config)
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
    for name in config.validate_on:
        _check_training_part(config, name, extents)
    trained = extents[config.sequences]
    count = trained.train - len(trained.train_names & _held_names(config, config.sequences, extents))
    size = _validation_size(config.sequences, count, config.validation)
    _check_fold(config.sequences, config.fold, count, size)
    _check_folds(config, count, size)
    return count - size


def holders(config: DataConfig, name: str) -> tuple[str, ...]:
    """Return the sets whose identities must be dropped from ``name``, because they validate or test them.

    A set in ``validate`` drops only what targets test. Empty unless ``shared_identities`` is ``drop``.
    """
    if config.shared_identities == "refuse":
        return ()
    return tuple(other for other in _may_hold(config, name) if _share_numbers(config, name, other))


def _may_hold(config: DataConfig, name: str) -> list[str]:
    """Return the other sets whose validation or test must not share identities with ``name``."""
    validating = () if name in config.validate_on else (config.sequences, *config.validate_on)
    return [other for other in dict.fromkeys((*validating, *config.targets)) if other != name]


def held_back(config: DataConfig, name: str, packs: Mapping[str, Pack], seed: int) -> frozenset[str]:
    """Return the identities of a set that its `holders` validate or test.

    ``packs`` contains the packs of the holders; ``seed`` is that of `training_part`.
    """
    held: set[str] = set()
    for other in holders(config, name):
        pack = packs[other]
        if other in config.validate_on and name not in config.validate_on:
            without = held_back(config, other, packs, seed)
            query, _ = validation_part(pack, config, seed, without)
            held.update(pack.identities[query].tolist())
        if other in config.targets:
            split = split_of(pack, config.split)
            held.update(pack.identities[np.array([*split.query, *split.gallery], np.int64)].tolist())
        if other == config.sequences:
            without = held_back(config, other, packs, seed)
            _, query, _ = training_part(pack, config.split, config.validation, seed, without, config.fold)
            held.update(pack.identities[query].tolist())
    return frozenset(held - {JUNK, DISTRACTOR})


def split_of(pack: Pack, split: int) -> Split:
    """Return split number ``split`` of a set, or its only split if it has a fixed protocol, such as MARS."""
    if len(pack.splits) == 1:
        return pack.splits[0]
    _check_split(pack.name, split, len(pack.splits))
    return pack.splits[split]


def training_part(
    pack: Pack, split: int, validation: float, seed: int, without: Collection[str] = (), fold: int = 0
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
        fold: which of the disjoint groups of so many identities validates.

    Returns:
        Sorted tracklet indices ``(train, validation query, validation gallery)``. No identity is in both
        training and validation; junk and distractors are in neither.

    Raises:
        DataError: the split or fold does not exist, or too few identities are left for training or
            validation.
    """
    part, candidates = _training_candidates(pack, split, without)
    count = _validation_size(pack.name, len(candidates), validation)
    _check_fold(pack.name, fold, len(candidates), count)
    drawn = np.random.default_rng([seed, split]).permutation(candidates)
    held = np.isin(pack.identities[part], drawn[fold * count : (fold + 1) * count])
    return part[~held], *_sides(pack, part, held)


def validation_part(
    pack: Pack, config: DataConfig, seed: int, without: Collection[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return query and gallery of a set in ``validate``, from the train part of its split.

    Query and gallery are those of `training_part`. With ``validate_identities``, so many are drawn; another
    ``fold`` draws others.
    """
    part, candidates = _training_candidates(pack, config.split, without)
    if config.validate_identities is not None:
        drawn = np.random.default_rng([seed, config.split, config.fold]).permutation(candidates)
        candidates = drawn[: config.validate_identities]
    return _sides(pack, part, np.isin(pack.identities[part], candidates))


def _training_candidates(
    pack: Pack, split: int, without: Collection[str]
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the sorted tracklets of the train part, and its identities that several cameras have seen."""
    part = np.array(split_of(pack, split).train, np.int64)
    part = np.sort(part[~np.isin(pack.identities[part], (JUNK, DISTRACTOR, *without))])
    return part, _seen_twice(pack.identities[part], pack.cameras[part])


def _sides(
    pack: Pack, part: NDArray[np.int64], held: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the tracklets ``part[held]`` into query and gallery; the cameras of ``part`` decide how."""
    tracklets, cameras = part[held], pack.cameras[part]
    views, cameras = np.unique(cameras), cameras[held]
    if len(views) == 2:
        return tracklets[cameras == views[0]], tracklets[cameras == views[1]]
    _, first = np.unique(np.stack([pack.identities[tracklets], cameras]), axis=1, return_index=True)
    return tracklets[np.sort(first)], tracklets


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


def _check_fold(name: str, fold: int, identities: int, size: int) -> None:
    """Refuse a fold of ``size`` of so many identities that does not exist."""
    folds = identities // size if size else 1
    if fold >= folds:
        valid = "only 0" if folds == 1 else f"0 to {folds - 1}"
        raise DataError(
            f"data.fold: {fold} is out of range; {size} of the {identities} training identities of {name!r}"
            f" validate, so there is {valid}"
        )


def _check_folds(config: DataConfig, identities: int, size: int) -> None:
    """Refuse more folds of ``size`` of so many identities than there are from ``data.fold`` on."""
    most = identities // size - config.fold if size else 1
    if config.folds > most:
        raise DataError(
            f"data.folds: {config.folds} is too many; {size} of the {identities} training identities of"
            f" {config.sequences!r} validate"
            + (f", so there are {most} from data.fold {config.fold} on" if size else "")
        )


def _check_validate(config: DataConfig) -> None:
    """Refuse sets in ``validate`` that also train, or that hide the mean over sets."""
    for name in config.validate_on:
        if name == config.sequences:
            raise DataError(
                f"data.validate: {name!r} is the set that trains, whose validation identities data.validation"
                " sets; name other sets"
            )
        if name in config.images:
            raise DataError(
                f"data.validate: {name!r} is in data.images, so it would validate on what it trains on; keep"
                " one of the two"
            )
        if name == CROSS:
            raise DataError(f"data.validate: {name!r} is the name of the mean over all sets; rename the set")


def _check_training_part(config: DataConfig, name: str, extents: "Mapping[str, _Extent]") -> None:
    """Refuse a set in ``validate`` whose training part has nothing to compare."""
    extent = extents[name]
    left = extent.train - len(extent.train_names & _held_names(config, name, extents))
    if left < _FEWEST:
        raise DataError(
            f"data.validate: the training part of {name!r} has {left or 'no'} identities in several cameras;"
            f" expected a set with at least {_FEWEST}"
        )


def _held_names(config: DataConfig, name: str, extents: "Mapping[str, _Extent]") -> frozenset[str]:
    """Return the names that the `holders` of a set validate in ``validate``, or test."""
    held: frozenset[str] = frozenset()
    for other in holders(config, name):
        if other in config.targets:
            held |= extents[other].test_names
        if other in config.validate_on and config.validate_identities is None:
            held |= extents[other].train_names - _held_names(config, other, extents)
    return held


def _check_split(name: str, split: int, splits: int) -> None:
    if split >= splits:
        valid = "only 0" if splits == 1 else f"0 to {splits - 1}"
        raise DataError(f"data.split: {split} is out of range; set {name!r} has {valid}")


def _check_role(config: DataConfig, role: str, name: str) -> None:
    """Refuse names without a set and sets of the wrong kind."""
    source = set_config(config, name, role)
    if role not in ("targets", "validate", f"{source.kind}s"):
        valid = [other for other, its in config.sets.items() if role == f"{its.kind}s"]
        raise DataError(
            f"data.{role}: {name!r} has {source.kind}s (layout {source.layout}); sets under data.sets with"
            f" {role}: {', '.join(valid) or 'none'}"
        )


def _check_leak(config: DataConfig) -> None:
    """Refuse to train on identities that another set, from the same source, validates or tests."""
    for name in (config.sequences, *config.images, *config.validate_on):
        validates = name in config.validate_on
        role, use = ("validation", "validate") if validates else ("training", "train")
        others = "test" if validates else "validation or test"
        for other in _may_hold(config, name):  # the splits of one set keep its identities apart
            ours, theirs = config.sets[name], config.sets[other]
            if _share_numbers(config, name, other):
                if config.shared_identities == "refuse":
                    raise DataError(
                        f"data.shared_identities: {name!r} is for {role} and {other!r} for {others}, but MARS"
                        " and Market-1501 share identities; write data.shared_identities: drop"
                        f" to {use} on {name!r} without the shared identities"
                    )
            elif _origin(ours) == _origin(theirs):
                raise DataError(
                    f"data: {name!r} is for {role} and {other!r} for {others}, but both are"
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
