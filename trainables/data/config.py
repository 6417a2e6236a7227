"""Config of the data: named sets, generated or read from a folder, and their roles."""

import functools
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)

from trainables import components
from trainables.components import Options
from trainables.data.readers import READERS, find_reader
from trainables.data.walkers.layouts import GenerateConfig
from trainables.network.components import AbsolutePath, absolute_path
from trainables.network.section import Section

_log = logging.getLogger(__name__)


class SetConfig(Section):
    """Config of one set: a folder in some layout, or walkers generated in a published layout."""

    layout: Annotated[str, components.component_name(lambda name: find_reader(name))] = Field(
        description=f"layout of the files on disk: {', '.join(READERS)}, or package.module:Class of a reader"
    )
    folder: AbsolutePath | None = Field(None, description="folder of the unpacked set; or write generate")
    generate: GenerateConfig | None = Field(None, description="walkers to generate; or write folder")
    options: Annotated[
        SerializeAsAny[Options],
        components.options_of("layout", lambda name: find_reader(name)),
    ] = Field(default_factory=Options, validate_default=True, description="options of the layout's reader")

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if (self.folder is None) == (self.generate is None):
            raise ValueError("expected exactly one of folder and generate")
        return self

    @property
    def kind(self) -> Literal["sequence", "image"]:
        """Kind of the tracklets: sequences or still images."""
        return find_reader(self.layout).kind


def _set_name(name: str) -> str:
    """Return a name that can be part of a metric in MLflow and of a file."""
    if not re.fullmatch(r"[\w-][\w .:-]{0,63}", name) or name.endswith(" "):
        raise ValueError(
            f"invalid name {name!r} of a set; expected at most 64 letters, digits, spaces and any of -_.:"
        )
    return name


class DataConfig(Section):
    """Config of all sets, their roles and the packing of their frames."""

    model_config = ConfigDict(serialize_by_alias=True)

    sets: dict[Annotated[str, AfterValidator(_set_name)], SetConfig] = Field(
        min_length=1, description="sets by the names that roles use"
    )
    sequences: str = Field(description="set of sequences for training and validation")
    images: tuple[str, ...] = Field((), description="sets of images for training")
    targets: tuple[str, ...] = Field((), description="sets whose test part scores the best model, once")
    split: int = Field(0, ge=0, description="number of the split, for sets with several")
    validation: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="fraction of the training identities of `sequences` for validation; may be 0",
    )
    fold: int = Field(0, ge=0, description="which of these disjoint groups of identities is held out")
    folds: int = Field(
        1,
        ge=1,
        description="models of a training, each with the next group of identities from `fold` on held out;"
        " validation scores are their means, and the first model is scored and exported",
    )
    validate_on: tuple[str, ...] = Field(  # BaseModel has a method `validate`
        (), alias="validate", description="other sets whose training part validates, and never trains"
    )
    validate_identities: int | None = Field(
        None, ge=2, description="most identities of each set in `validate`; default: all"
    )
    shared_identities: Literal["refuse", "drop"] = Field(
        "refuse",
        description="what to do if one of MARS and Market-1501 trains and the other validates or tests:"
        " refuse the config, or drop the shared identities from training",
    )
    height: int = Field(64, ge=16, le=1024, description="height of a packed frame in pixels")
    width: int = Field(48, ge=16, le=1024, description="width of a packed frame in pixels")
    flow: Literal["none", "dis"] = Field("none", description="optical flow stored with sequences")
    unreadable: Literal["stop", "skip"] = Field(
        "stop", description="what to do at a frame that cannot be decoded"
    )
    cache: AbsolutePath | None = Field(
        None,
        description="folder of packs; default $REID_CACHE, else multi-shot-reid in the user's cache folder",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_shared_people(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "shared_people" not in values:
            return values
        if "shared_identities" in values:
            raise ValueError("shared_people is the old name of shared_identities; remove shared_people")
        _warn_of_shared_people()
        return {
            "shared_identities" if name == "shared_people" else name: value for name, value in values.items()
        }

    @property
    def fold_configs(self) -> "list[DataConfig]":
        """The config of each model of a training; equal to this one if there is one model."""
        folds = range(self.fold, self.fold + self.folds)
        return [self.model_copy(update={"fold": fold, "folds": 1}) for fold in folds]

    @property
    def cache_folder(self) -> Path:
        """Folder of the packs and generated sets."""
        if self.cache is not None:
            return self.cache
        if folder := os.environ.get("REID_CACHE"):
            absolute = absolute_path(Path(folder))
            os.environ["REID_CACHE"] = str(absolute)  # for workers, which run in another folder
            return absolute
        user = os.environ.get("XDG_CACHE_HOME")
        return (Path(user) if user else Path.home() / ".cache").absolute() / "multi-shot-reid"


@functools.cache  # a sweep validates many configs
def _warn_of_shared_people() -> None:
    _log.warning("data.shared_people is now called data.shared_identities; rename it in the file")
