"""The data part of a config: named sets, generated or read from a folder, packed once in a cache."""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import filelock
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from trainables.data import packing
from trainables.data.packing import Pack
from trainables.data.readers import LAYOUTS, check_options, find_layout, read
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError, DataSet, Split
from trainables.data.walkers import layouts as walkers
from trainables.data.walkers.layouts import GenerateConfig

Say = Callable[[str], None]

_ONE_NUMBERING = frozenset({"mars", "market1501"})
"""Layouts in which a number is the same person.

MARS is "a video extension of the Market-1501 dataset" (Zheng et al., ECCV 2016, abstract). That it kept the
numbers is our reading; by them 48.3 % of its test people are training people of Market-1501.
"""

_FEWEST = 2
"""Identities that training and validation need each: one cannot be told from another."""


class SetConfig(BaseModel):
    """One set: a folder in a published layout, or walkers generated in that layout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str = Field(description=f"how the set lies on disk: {', '.join(LAYOUTS)}")
    folder: Path | None = Field(None, description="the set's own folder, as unpacked; or generate")
    generate: GenerateConfig | None = Field(None, description="the walkers to generate; or folder")
    options: dict[str, JsonValue] = Field({}, description="options of the layout's reader")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.generate is None):
            raise ValueError("expected exactly one of folder and generate")
        return self


class DataConfig(BaseModel):
    """Which sets there are, what each is used for, and how their frames are packed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets: dict[str, SetConfig] = Field(min_length=1, description="the sets, by the names used below")
    sequences: str = Field(description="set whose sequences are trained on, and validated on")
    images: tuple[str, ...] = Field((), description="sets whose images are trained on")
    targets: tuple[str, ...] = Field((), description="sets whose test part is scored once, by the best model")
    split: int = Field(0, ge=0, description="which split of the sets that have several")
    validation: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="fraction of the training identities of `sequences` kept for selection; may be 0",
    )
    shared_people: Literal["refuse", "drop"] = Field(
        "refuse",
        description="people whom MARS or Market-1501 validates or tests: refuse to train on the other of the"
        " two, or drop these people from its training part",
    )
    height: int = Field(64, ge=16, le=1024, description="rows of a packed frame")
    width: int = Field(48, ge=16, le=1024, description="columns of a packed frame")
    flow: Literal["none", "dis"] = Field("none", description="optical flow stored with sequences")
    unreadable: Literal["stop", "skip"] = Field(
        "stop", description="what a frame that cannot be decoded does"
    )
    cache: Path | None = Field(
        None,
        description="folder of packs; default $REID_CACHE, else multi-shot-reid in the user's cache folder",
    )


def resolve(config: DataConfig, name: str, say: Say = print) -> Pack:
    """Generate, read and pack one set of ``config.sets``, or reuse the pack of an earlier call.

    A pack is reused while layout, options, packing parameters and what the reader lists (labels, splits, the
    name, size and time of every file) are the same. Of several processes that ask for it at once one builds,
    the others wait for it.

    Raises:
        DataError: the set cannot be read, generated or packed; the line begins with the config field.
    """
    _check_role(config, "targets", name)
    chosen, cache = config.sets[name], cache_folder(config)
    if chosen.folder is not None:
        data_set = _read(name, chosen, chosen.folder)
        source = _listing(data_set)
    if chosen.generate is not None:
        source = walkers.description(chosen.layout, chosen.generate)
    path = cache / "packs" / f"{chosen.layout}-{_key(config, chosen, source)}.arrow"
    with _locked(path, name, say):
        if path.exists():
            with contextlib.suppress(DataError):
                pack = Pack.open(path, name)
                say(f"{name}: reused, {_counts(pack)} ({path})")
                return pack
        started = time.perf_counter()
        if chosen.generate is not None:
            data_set = _read(name, chosen, _generate(cache, name, chosen.layout, chosen.generate, say))
        else:
            for note in data_set.notes:
                say(f"{name}: {note}")
        with _at(f"data.sets.{name}"):
            pack = packing.pack(
                data_set,
                path,
                height=config.height,
                width=config.width,
                flow=config.flow,
                unreadable=config.unreadable,
                say=say,
            )
    size, seconds = path.stat().st_size / 2**20, time.perf_counter() - started
    say(f"{name}: packed {_counts(pack)}, {size:.0f} MiB in {seconds:.1f} s ({path})")
    return pack


def check(config: DataConfig) -> int:
    """Check everything about the data that listing files can tell; writes and decodes nothing.

    Returns how many identities are left to train on, of those whom several cameras have seen.

    Raises:
        DataError: one line that begins with the config field at fault.
    """
    try:
        _check_writable(cache_folder(config))
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
        raise DataError(f"data.cache: {error}; name another folder here or in $REID_CACHE") from error
    used = {"sequences": (config.sequences,), "images": config.images, "targets": config.targets}
    for role, names in used.items():
        for name in names:
            _check_role(config, role, name)
    _check_leak(config)
    extents = {name: _extent(config, name) for names in used.values() for name in names}
    _check_split(config.sequences, config.split, extents[config.sequences].splits)
    for name in (*config.images, *config.targets):
        if extents[name].splits > 1:
            _check_split(name, config.split, extents[name].splits)
    for name in config.targets:
        if extents[name].test == 0:
            raise DataError(f"data.targets: {name!r} has no test part; expected a set with query and gallery")
    trained = extents[config.sequences]
    held = {person for other in holders(config, config.sequences) for person in extents[other].test_names}
    people = trained.train - len(trained.train_names & held)
    return people - _validation_size(config.sequences, people, config.validation)


def holders(config: DataConfig, name: str) -> tuple[str, ...]:
    """The sets that validate or test people whom ``name`` drops: none unless ``shared_people: drop``."""
    if config.shared_people == "refuse":
        return ()
    used = dict.fromkeys((config.sequences, *config.targets))
    return tuple(other for other in used if other != name and _one_numbering(config, name, other))


def held_back(config: DataConfig, name: str, packs: Mapping[str, Pack], seed: int) -> frozenset[str]:
    """Identities that the `holders` of a set validate or test, by number; ``name`` must not train on them.

    ``packs`` has those of the holders; ``seed`` is the one that `training_part` carves with.
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
    """Split number ``split`` of a set, or the only one of a set with a fixed protocol, such as MARS."""
    if len(pack.splits) == 1:
        return pack.splits[0]
    _check_split(pack.name, split, len(pack.splits))
    return pack.splits[split]


def training_part(
    pack: Pack, split: int, validation: float, seed: int, without: Collection[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Carve validation identities out of the training identities of a split; the test part is not touched.

    Identities in ``without`` neither train nor validate.
    Only people seen by several cameras can validate. In a set of two cameras the first queries and the second
    is the gallery. With more, the first tracklet of a person in each camera queries and every validation
    tracklet is in the gallery: scoring must ignore the query's own person in the query's own camera.

    Returns:
        Tracklet indices ``(train, validation query, validation gallery)``, each sorted. No identity of the
        validation part is in the train part. Junk and distractors are in neither.

    Raises:
        DataError: the split does not exist, or too few people are left to train or validate.
    """
    _check_split(pack.name, split, len(pack.splits))
    part = np.array(pack.splits[split].train, np.int64)
    part = np.sort(part[~np.isin(pack.identities[part], (JUNK, DISTRACTOR, *without))])
    identities, cameras = pack.identities[part], pack.cameras[part]
    people = _seen_twice(identities, cameras)
    count = _validation_size(pack.name, len(people), validation)
    chosen = np.random.default_rng([seed, split]).permutation(people)[:count]
    held = np.isin(identities, chosen)
    views = np.unique(cameras)
    if len(views) == 2:
        return part[~held], part[held & (cameras == views[0])], part[held & (cameras == views[1])]
    _, first = np.unique(np.stack([identities[held], cameras[held]]), axis=1, return_index=True)
    return part[~held], part[held][np.sort(first)], part[held]


def cache_folder(config: DataConfig) -> Path:
    """Where packs and generated sets lie."""
    if config.cache is not None:
        return config.cache.expanduser().absolute()
    if named := os.environ.get("REID_CACHE"):
        return Path(named).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache").absolute() / "multi-shot-reid"


@dataclass(frozen=True, slots=True)
class _Extent:
    """Number of splits, and identities in the train and test part of the chosen one.

    The names are known where two layouts have `_ONE_NUMBERING`.
    """

    splits: int
    train: int
    test: int
    train_names: frozenset[str] = frozenset()
    test_names: frozenset[str] = frozenset()


def _extent(config: DataConfig, name: str) -> _Extent:
    chosen = config.sets[name]
    if chosen.generate is not None:
        with _at(f"data.sets.{name}.generate"):
            walkers.check(chosen.layout, chosen.generate)
        names = walkers.people(chosen.layout, chosen.generate) if chosen.layout in _ONE_NUMBERING else ()
        return _Extent(*walkers.extent(chosen.layout, chosen.generate), *names)
    assert chosen.folder is not None  # SetConfig holds exactly one of the two
    data_set = _read(name, chosen, chosen.folder)
    split = data_set.splits[min(config.split, len(data_set.splits) - 1)]
    train = [data_set.tracklets[i] for i in split.train]
    people = _seen_twice(np.array([t.identity for t in train]), np.array([t.camera for t in train]))
    tested, kept = ({data_set.tracklets[i].identity for i in part} for part in (split.query, split.gallery))
    names = frozenset(people.tolist()), frozenset(tested | kept)
    return _Extent(len(data_set.splits), len(people), len(tested), *names)


def _seen_twice(identities: NDArray[np.str_], cameras: NDArray[np.str_]) -> NDArray[np.str_]:
    """Identities, sorted, that more than one camera has seen."""
    if len(identities) == 0:
        return identities
    seen = np.unique(np.stack([identities, cameras]), axis=1)[0]
    people, views = np.unique(seen, return_counts=True)
    return people[(views > 1) & ~np.isin(people, (JUNK, DISTRACTOR))]


def _validation_size(name: str, people: int, validation: float) -> int:
    """How many of the training identities validate."""
    if validation == 0:
        return 0
    count = max(_FEWEST, round(validation * people))
    if people - count < _FEWEST:
        raise DataError(
            f"data.validation: {validation:g} of {people} training identities of {name!r} in several cameras"
            f" leaves {max(0, people - count)} to train on; expected at least {_FEWEST} in either part"
        )
    return count


def _check_split(name: str, split: int, splits: int) -> None:
    if split >= splits:
        valid = "only 0" if splits == 1 else f"0 to {splits - 1}"
        raise DataError(f"data.split: {split} is out of range; set {name!r} has {valid}")


def _check_role(config: DataConfig, role: str, name: str) -> None:
    """Refuse names that are no set, and sets of the other kind."""
    if name not in config.sets:
        nearest = difflib.get_close_matches(name, config.sets, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise DataError(f"data.{role}: no set {name!r}; {hint}data.sets has {', '.join(config.sets)}")
    chosen = config.sets[name]
    with _at(f"data.sets.{name}", separator="."):
        kind = find_layout(chosen.layout).kind
    with _at(f"data.sets.{name}.options"):
        check_options(find_layout(chosen.layout), chosen.options)
    if role != "targets" and role != f"{kind}s":
        fitting = [other for other, its in config.sets.items() if its.layout in LAYOUTS
                   and role == f"{LAYOUTS[its.layout].kind}s"]  # fmt: skip
        there = ", ".join(fitting) or "none"
        raise DataError(
            f"data.{role}: {name!r} holds {kind}s (layout {chosen.layout}); sets under data.sets that hold"
            f" {role}: {there}"
        )


def _check_leak(config: DataConfig) -> None:
    """Refuse to train on people that validate or test under another name of the same source."""
    if len(set(config.images)) < len(config.images):
        raise DataError(
            f"data.images: {', '.join(config.images)} names a set twice; each person would count twice"
        )
    trained = (config.sequences, *config.images)
    for name in trained:
        for other in dict.fromkeys((config.sequences, *config.targets)):
            if other == name:
                continue  # one set: its own split keeps them apart
            ours, theirs = config.sets[name], config.sets[other]
            if _one_numbering(config, name, other):
                if config.shared_people == "refuse":
                    raise DataError(
                        f"data.shared_people: {name!r} is trained on and {other!r} holds people back, but"
                        f" MARS and Market-1501 share people; write data.shared_people: drop, and {name!r}"
                        " trains without them"
                    )
            elif _people(ours) == _people(theirs):
                raise DataError(
                    f"data: {name!r} is trained on and {other!r} holds people back, but both are"
                    f" {_people(ours)}; use one set in both places, or people of their own"
                )


def _one_numbering(config: DataConfig, name: str, other: str) -> bool:
    """Whether a number is the same person in two sets of different layouts."""
    ours, theirs = config.sets[name], config.sets[other]
    seeds = {its.generate.seed if its.generate else None for its in (ours, theirs)}
    return {ours.layout, theirs.layout} == _ONE_NUMBERING and len(seeds) == 1


def _people(chosen: SetConfig) -> str:
    """What decides who is in a set."""
    if chosen.generate is not None:
        return f"drawn from seed {chosen.generate.seed}"
    return f"read from {Path(chosen.folder or '').expanduser().resolve()}"


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise _unwritable(folder, "not a folder" if existing.is_file() else "no permission")


def _unwritable(folder: Path, why: str | None) -> DataError:
    return DataError(
        f"data.cache: {folder} cannot be written ({why}); name another folder here or in $REID_CACHE"
    )


def _read(name: str, chosen: SetConfig, folder: Path) -> DataSet:
    with _at(f"data.sets.{name}.folder"):
        return read(chosen.layout, folder, name=name, **chosen.options)


def _generate(cache: Path, name: str, layout: str, config: GenerateConfig, say: Say) -> Path:
    """The folder of a generated set; whoever comes first writes it."""
    folder = cache / "generated" / f"{layout}-{_hash(walkers.description(layout, config))}"
    with _locked(folder, name, say), _at(f"data.sets.{name}.generate"):
        if folder.exists() and not (folder / walkers.MARKER).is_file():
            shutil.rmtree(folder)
        walkers.write(layout, folder, config, lambda line: say(f"{name}: {line}"))
    return folder


def _key(config: DataConfig, chosen: SetConfig, source: str) -> str:
    parameters = (config.height, config.width, config.flow, config.unreadable)
    return _hash(
        json.dumps([packing.FORMAT, chosen.layout, chosen.options, parameters, source], sort_keys=True)
    )


def _listing(data_set: DataSet) -> str:
    """A fingerprint of what a reader found: labels, splits, and name, size and time of every file."""

    @functools.cache
    def stamp(path: Path) -> tuple[str, int, int]:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        return str(path), status.st_size, status.st_mtime_ns

    digest = hashlib.blake2b(repr(data_set.splits).encode())
    for tracklet in data_set.tracklets:
        files = [(stamp(frame.path), frame.key) for frame in tracklet.frames]
        digest.update(repr((tracklet.identity, tracklet.camera, files)).encode())
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _counts(pack: Pack) -> str:
    people = len(np.unique(pack.identities))
    skipped = f" ({pack.skipped:,} unreadable ones left out)" if pack.skipped else ""
    return f"{len(pack):,} tracklets of {people:,} identities, {pack.lengths.sum():,} frames{skipped}"


@contextlib.contextmanager
def _at(field: str, separator: str = ": ") -> Iterator[None]:
    """Begin the line of a DataError with the config field."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{field}{separator}{error}") from error


@contextlib.contextmanager
def _locked(path: Path, name: str, say: Say) -> Iterator[None]:
    """Hold the lock of one cached thing; an unwritable cache is the user's to mend."""
    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"{name}: waiting for another process that builds it")
            lock.acquire()
    except OSError as error:
        raise _unwritable(path.parent, error.strerror) from error
    try:
        yield
    finally:
        lock.release()
