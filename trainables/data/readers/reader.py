"""Base class of data set readers."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from trainables import components
from trainables.data.tracklet import DataSet

RESEARCH = "distributed for research; no open licence is known: ask its publisher before any other use"
"""``Reader.licence`` of the published sets."""


class Reader(ABC):
    """Reader of data sets in one layout, which is the arrangement of their files on disk.

    A config names a reader as ``data.sets.NAME.layout`` and its options as ``data.sets.NAME.options``.
    Readers have no state and are built without arguments. `trainables.testing.check_reader` checks a reader.
    """

    Options: ClassVar[type[components.Options]] = components.Options
    """Model of the options of `read`."""
    kind: ClassVar[Literal["sequence", "image"]]
    """Kind of the tracklets: sequences, or still images of length 1."""
    licence: ClassVar[str] = "not known; ask its publisher"
    """Terms of use of the set, as far as known, for the card of a model that was trained on it."""
    expected: ClassVar[str]
    """Description of the layout, ``"expected ..."``, for messages about a folder."""

    @abstractmethod
    def recognise(self, folder: Path) -> bool:
        """Return whether ``folder`` looks like this layout.

        Judge by file names alone: this must be fast, and True for an incomplete set too.
        """

    @abstractmethod
    def read(self, folder: Path, name: str, options: Any) -> DataSet:
        """Read the set in ``folder``, which `recognise` has accepted.

        Args:
            folder: absolute path of the set.
            name: name of the returned set.
            options: an instance of ``Options``.

        Returns:
            Every usable tracklet, frames in temporal order, with the official splits. In each split, no
            identity of the train part is in the test part, and junk and distractors do not train.

        Raises:
            DataError: a file is missing or damaged; the message is one line that names it.
        """
