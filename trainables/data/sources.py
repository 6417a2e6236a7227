"""Packs of the sets of a config, which are generated, read and packed once in a cache."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock
import numpy as np

from trainables.data import packing
from trainables.data.config import DataConfig, SetConfig
from trainables.data.packing import Pack
from trainables.data.readers import read_checked
from trainables.data.tracklet import DataSet
from trainables.data.walkers import layouts
from trainables.data.walkers.layouts import GenerateConfig
from trainables.errors import DataError, did_you_mean

_log = logging.getLogger(__name__)


def resolve_all(config: DataConfig, names: Iterable[str]) -> dict[str, Pack]:
    """Return the packs of several sets by name; see `resolve`."""
    return {name: resolve(config, name) for name in sorted(set(names))}


def reopen(config: DataConfig, names: Iterable[str]) -> dict[str, Pack]:
    """Return the packs of sets that `resolve_all` prepared, by name; log only packs that must be rebuilt."""
    return {name: resolve(config, name, reuse_level=logging.DEBUG) for name in sorted(set(names))}


def resolve(config: DataConfig, name: str, *, reuse_level: int = logging.INFO) -> Pack:
    """Generate, read and pack one set of ``config.sets``, or reuse its pack from the cache.

    A pack is reused as long as layout, options, packing parameters, labels, splits, and the name, size and
    time of every file are the same. If several processes need the same pack, one builds it and the others
    wait. ``reuse_level`` is the level at which reuse is logged.

    Raises:
        DataError: the set cannot be read, generated or packed; the message begins with the config field.
    """
    source = set_config(config, name, "targets")
    if source.folder is not None:
        data_set = read_set(name, source, source.folder)
        files = fingerprint(data_set)
    if source.generate is not None:
        files = layouts.description(source.layout, source.generate)
    file_name = f"{source.layout.replace(':', '.')}-{_key(config, source, files)}.arrow"
    path = config.cache_folder / "packs" / file_name
    with _locked(path, name):
        if path.exists():
            with contextlib.suppress(DataError):
                pack = Pack.open(path, name)
                _log.log(reuse_level, "%s: reused %s (%s)", name, _counts(pack), path)
                return pack
        started = time.perf_counter()
        if source.generate is not None:
            folder = _generate(config.cache_folder, name, source.layout, source.generate)
            data_set = read_set(name, source, folder)
        else:
            for note in data_set.notes:
                _log.info("%s: %s", name, note)
        with at_field(f"data.sets.{name}"):
            pack = packing.pack(
                data_set,
                path,
                height=config.height,
                width=config.width,
                flow=config.flow,
                unreadable=config.unreadable,
            )
    size, seconds = path.stat().st_size / 2**20, time.perf_counter() - started
    _log.info("%s: packed %s, %.0f MiB in %.1f s (%s)", name, _counts(pack), size, seconds, path)
    return pack


def set_config(config: DataConfig, name: str, role: str) -> SetConfig:
    """Return the config of a set that ``data.<role>`` names.

    Raises:
        DataError: there is no such set.
    """
    if name not in config.sets:
        hint = did_you_mean(name, config.sets)
        raise DataError(f"data.{role}: no set {name!r}; {hint}data.sets has {', '.join(config.sets)}")
    return config.sets[name]


def read_set(name: str, source: SetConfig, folder: Path) -> DataSet:
    """Read a set from ``folder``.

    Raises:
        DataError: the set cannot be read; the message begins with the config field.
    """
    with at_field(f"data.sets.{name}.folder"):
        return read_checked(source.layout, folder, name, source.options)


def check_cache(config: DataConfig) -> None:
    """Check that the cache folder can be written. Creates nothing.

    Raises:
        DataError: it cannot.
    """
    try:
        folder = config.cache_folder
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
        raise DataError(f"data.cache: {error}; choose another folder here or in $REID_CACHE") from error
    if not writable:
        raise _unwritable(folder, "not a folder" if existing.is_file() else "no permission")


@contextlib.contextmanager
def at_field(field: str) -> Iterator[None]:
    """Prefix DataErrors with the config field."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{field}: {error}") from error


def _unwritable(folder: Path, reason: str | None) -> DataError:
    return DataError(
        f"data.cache: {folder} cannot be written ({reason}); choose another folder here or in $REID_CACHE"
    )


def _generate(cache: Path, name: str, layout: str, config: GenerateConfig) -> Path:
    """Return the folder of a generated set; the first process that needs it writes it."""
    folder = cache / "generated" / f"{layout}-{_hash(layouts.description(layout, config))}"
    with _locked(folder, name), at_field(f"data.sets.{name}.generate"):
        if folder.exists() and not (folder / layouts.MARKER).is_file():
            shutil.rmtree(folder)
        layouts.write(layout, folder, config, name)
    return folder


def _key(config: DataConfig, source: SetConfig, files: str) -> str:
    # Without defaults, so that a config that spells them out has the same key.
    options = source.options.model_dump(mode="json", exclude_defaults=True)
    parameters = (config.height, config.width, config.flow, config.unreadable)
    return _hash(json.dumps([packing.FORMAT, source.layout, options, parameters, files], sort_keys=True))


def fingerprint(data_set: DataSet) -> str:
    """Return a hash of a set: labels, splits, and name, size and time of every file that exists."""

    @functools.cache
    def stamp(path: Path) -> tuple[str, int, int]:
        try:
            status = path.stat()
        except OSError:  # whoever decodes it says why, or skips it
            return str(path), -1, -1
        return str(path), status.st_size, status.st_mtime_ns

    digest = hashlib.blake2b(repr(data_set.splits).encode())
    for tracklet in data_set.tracklets:
        files = [(stamp(frame.path), frame.key) for frame in tracklet.frames]
        digest.update(repr((tracklet.identity, tracklet.camera, files)).encode())
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _counts(pack: Pack) -> str:
    identities = len(np.unique(pack.identities))
    skipped = f" ({pack.skipped:,} unreadable ones skipped)" if pack.skipped else ""
    return f"{len(pack):,} tracklets of {identities:,} identities, {pack.lengths.sum():,} frames{skipped}"


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of a cached file or folder; raises DataError if the cache cannot be written."""
    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.info("%s: waiting for another process to build it", name)
            lock.acquire()
    except OSError as error:
        raise _unwritable(path.parent, error.strerror) from error
    try:
        yield
    finally:
        lock.release()
