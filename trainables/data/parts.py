"""Training, validation and test parts of the packed sets of a config."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.data.config import DataConfig
from trainables.data.packing import Pack
from trainables.data.splits import held_back, holders, split_of, training_part, validation_part
from trainables.data.tracklet import DISTRACTOR, JUNK

_VALIDATION_SEED = 0
"""Constant, and not the config's seed, so that all seeds of a sweep validate on the same identities."""


@dataclass(frozen=True)
class Part:
    """Subset of the tracklets of a pack, by index."""

    pack: Pack
    tracklets: NDArray[np.int64]

    @property
    def identities(self) -> NDArray[np.str_]:
        """Identity of each tracklet of the part."""
        return self.pack.identities[self.tracklets]

    @property
    def cameras(self) -> NDArray[np.str_]:
        """Camera of each tracklet of the part."""
        return self.pack.cameras[self.tracklets]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of frames of each tracklet of the part."""
        return self.pack.lengths[self.tracklets]


class DataParts:
    """Parts of the sets of a config; no identity is in two of training, validation and test.

    This holds across sets, too: a set in ``validate`` does not train, and drops what targets test.
    ``packs`` must contain the sets whose parts are requested; for training, all of `needed_to_train`.
    """

    def __init__(self, config: DataConfig, packs: Mapping[str, Pack]) -> None:
        self.config, self.packs = config, packs

    def train(self) -> Part:
        """Return the training sequences."""
        return self._sequences()[0]

    def validation(self) -> tuple[Part, Part]:
        """Return query and gallery of the validation identities; both are empty if ``validation`` is 0."""
        _, query, gallery = self._sequences()
        return query, gallery

    def cross_validation(self) -> dict[str, tuple[Part, Part]]:
        """Return query and gallery of every set in ``validate``, by its name."""
        return {name: self._validated(name) for name in self.config.validate_on}

    def images(self, name: str) -> Part:
        """Return the training images of a set, without identities that another set validates or tests."""
        pack = self.packs[name]
        candidates = self._candidates(name)
        excluded = (JUNK, DISTRACTOR, *self._held_back(name))
        return _part(pack, candidates[~np.isin(pack.identities[candidates], excluded)])

    def test(self, name: str) -> tuple[Part, Part]:
        """Return query and gallery of a target."""
        pack = self.packs[name]
        split = split_of(pack, self.config.split)
        return _part(pack, split.query), _part(pack, split.gallery)

    def tests(self) -> Iterator[tuple[str, Part, Part]]:
        """Yield name, query and gallery of every target."""
        for name in self.config.targets:
            yield name, *self.test(name)

    def dropped(self, name: str) -> Part:
        """Return the tracklets that do not train because another set validates or tests their identities."""
        pack, candidates = self.packs[name], self._candidates(name)
        return _part(pack, candidates[np.isin(pack.identities[candidates], tuple(self._held_back(name)))])

    def _sequences(self) -> tuple[Part, Part, Part]:
        name, config = self.config.sequences, self.config
        pack, held = self.packs[name], self._held_back(name)
        parts = training_part(pack, config.split, config.validation, _VALIDATION_SEED, held, config.fold)
        train, query, gallery = (_part(pack, part) for part in parts)
        return train, query, gallery

    def _validated(self, name: str) -> tuple[Part, Part]:
        pack = self.packs[name]
        query, gallery = validation_part(pack, self.config, _VALIDATION_SEED, self._held_back(name))
        return _part(pack, query), _part(pack, gallery)

    def _candidates(self, name: str) -> NDArray[np.int64]:
        """Return all tracklets, or the train part if the set also serves validation or test."""
        pack = self.packs[name]
        if name in (self.config.sequences, *self.config.targets, *self.config.validate_on):
            return np.asarray(split_of(pack, self.config.split).train, np.int64)
        return np.arange(len(pack))

    def _held_back(self, name: str) -> frozenset[str]:
        return held_back(self.config, name, self.packs, _VALIDATION_SEED)


def needed_to_train(config: DataConfig, images: Sequence[str]) -> set[str]:
    """Return the sets that train or validate, among them ``images``, and those whose identities they drop."""
    used = (config.sequences, *images, *config.validate_on)
    return {*used, *(other for name in used for other in holders(config, name))}


def _part(pack: Pack, tracklets: ArrayLike) -> Part:
    return Part(pack, np.asarray(tracklets, np.int64))
