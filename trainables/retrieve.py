"""``python -m trainables.retrieve``: embed tracklets with a stored model, and rank a gallery for a query."""

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from trainables import console
from trainables.console import OUT, Parser, busy, picture, positive
from trainables.data import sources
from trainables.data.decoding import decode_image
from trainables.data.readers import READERS, check_options, read_checked
from trainables.data.readers.crops import read_crops
from trainables.data.readers.folders import IMAGE_SUFFIXES, sequence, still
from trainables.data.tracklet import LONGEST, DataSet, Frame, Tracklet
from trainables.errors import DataError, at_field, did_you_mean
from trainables.evaluation.gallery import About, Gallery, Match, Parts, Row, judge, nearest, table
from trainables.network import images

if TYPE_CHECKING:
    from trainables.export.stored_model import StoredModel

EXAMPLES = """examples:
  python -m trainables.retrieve embed multi-shot-reid@champion prid2011 /data/prid_2011 prid.parquet
  python -m trainables.retrieve embed /models/champion crops /data/crops gallery.parquet
  python -m trainables.retrieve rank gallery.parquet crop.jpg --top 5 --sheet ranking.png

MODEL is NAME@ALIAS or NAME/VERSION of the registry, or the folder of a downloaded model. Loading a model
runs code that it contains: load only models from a registry that you trust.
"""
CROPS = "crops"

_FRAMES_AT_ONCE = 1024
"""Frames of a part of the file, which bounds memory, and the work that a killed command does again."""
_QUERIES_AT_ONCE, _MATCHES_AT_ONCE = 256, 1 << 18
"""Most queries of a block, and most tracklets that are found for it, which bounds memory."""
_ON_SHEET = 20
"""Most queries of a sheet, and most tracklets of each."""
_SHEET_HEIGHT = 128
_LABEL = 11
"""Characters in a line below a frame."""

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code, see `trainables.console.run`."""
    chosen = parser().parse_args(arguments)
    return console.run(chosen.command, chosen)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = Parser(
        prog="python -m trainables.retrieve",
        description=__doc__.partition(": ")[2] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    tracking = "address of MLflow (default: MLFLOW_TRACKING_URI, else ~/reid-sweeps/mlflow.db)"

    about = "embed every tracklet of a folder; rerun the command to resume"
    embed = commands.add_parser("embed", help=about, description=about)
    embed.set_defaults(command=embed_command)
    embed.add_argument("model", metavar="MODEL", help="NAME@ALIAS, NAME/VERSION, or a folder")
    layouts = ", ".join([CROPS, *READERS, "package.module:Class"])
    embed.add_argument("layout", metavar="LAYOUT", help=f"one of {layouts}; {CROPS} has no labels")
    embed.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the set")
    embed.add_argument("out", metavar="OUT.parquet", type=parquet, help="file to write")
    embed.add_argument("--tracking", metavar="URI", help=tracking)
    option = "option of the layout, for example minimum_frames=28; may be repeated"
    embed.add_argument("--option", metavar="NAME=VALUE", action="append", default=[], help=option)
    embed.add_argument("--skip-unreadable", action="store_true", help="skip unreadable frames")

    about = "show the tracklets of a gallery that are most similar to a query"
    rank = commands.add_parser("rank", help=about, description=about)
    rank.set_defaults(command=rank_command)
    rank.add_argument("gallery", metavar="GALLERY.parquet", type=Path, help="file that embed wrote")
    query = "an image, a folder of images of one tracklet, or a file that embed wrote"
    rank.add_argument("query", metavar="QUERY", type=Path, help=query)
    rank.add_argument("--top", metavar="N", type=positive, default=10, help="tracklets to show (default: 10)")
    sheet = f"also draw the first {_ON_SHEET} queries, and {_ON_SHEET} tracklets of each (.png, .jpg)"
    rank.add_argument("--sheet", metavar="FILE", type=picture, help=sheet)
    rank.add_argument("--json", action="store_true", help="print one line of JSON for each query")
    rank.add_argument("--model", metavar="MODEL", help="the gallery's model, if it is elsewhere now")
    elsewhere = "folder of the gallery's images, if they are elsewhere now"
    rank.add_argument("--images", metavar="FOLDER", type=Path, help=elsewhere)
    rank.add_argument("--tracking", metavar="URI", help=tracking)
    return top


def parquet(text: str) -> Path:
    """Parse the name of a Parquet file."""
    if Path(text).suffix != ".parquet":
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends with .parquet")
    return Path(text)


def embed_command(chosen: argparse.Namespace) -> None:
    """Embed every tracklet of a set."""
    data_set = read_set(chosen)
    with opened_model(chosen.model, chosen.tracking) as model:
        about = describe(model, data_set, chosen)
        if chosen.out.exists():
            if Gallery(chosen.out).about != about:
                raise DataError(
                    f"{chosen.out}: has other features, of another model or folder; choose another name, or"
                    " remove it"
                )
            Gallery(chosen.out).check()
            OUT.print(f"{chosen.out}: complete already", highlight=False, soft_wrap=True)
            return
        count = embed(model, data_set, Parts(chosen.out, about), Path(about.folder), chosen.skip_unreadable)
    left_out = len(data_set.tracklets) - count
    OUT.print(
        f"{chosen.out}: {count:,} tracklets, features of length {model.dimension} by {model.uri}"
        f" (feature checksum {model.checksum[:12]})"
        + (f"; {left_out:,} without a readable image left out" if left_out else ""),
        highlight=False,
        soft_wrap=True,
    )


def read_set(chosen: argparse.Namespace) -> DataSet:
    """Read the set that the command line names."""
    if chosen.layout == CROPS:
        if chosen.option:
            raise DataError(f"--option {chosen.option[0]}: layout {CROPS} has no options")
        with busy(f"reading {chosen.folder}"):
            return read_crops(chosen.folder)
    if ":" not in chosen.layout and chosen.layout not in READERS:
        layouts = [CROPS, *READERS]
        hint = did_you_mean(chosen.layout, layouts)
        raise DataError(
            f"no layout {chosen.layout!r}; {hint}expected {', '.join(layouts)}, or package.module:Class"
        )
    options = check_options(chosen.layout, console.named_values(chosen.option))
    with busy(f"reading {chosen.folder}"):
        return read_checked(chosen.layout, chosen.folder, chosen.folder.absolute().name, options)


@contextlib.contextmanager
def opened_model(uri: str, tracking: str | None) -> Iterator["StoredModel"]:
    """Load a model while showing that."""
    with contextlib.ExitStack() as stack:
        with busy(f"loading {uri}"):
            from trainables.export.stored_model import open_model  # imports PyTorch and MLflow

            model = stack.enter_context(open_model(uri, tracking))
        yield model


def describe(model: "StoredModel", data_set: DataSet, chosen: argparse.Namespace) -> About:
    """Return what the features of a set will be."""
    how = f"{sources.fingerprint(data_set)} {LONGEST} {chosen.skip_unreadable}"
    return About(
        model=model.uri,
        model_name=model.name,
        model_version=model.version or "",
        model_checksum=model.checksum,
        embedding_dimension=model.dimension,
        calibration=model.calibration,
        layout=chosen.layout,
        folder=str(chosen.folder.expanduser().absolute()),
        fingerprint=hashlib.blake2b(how.encode(), digest_size=10).hexdigest(),
    )


def embed(model: "StoredModel", data_set: DataSet, parts: Parts, folder: Path, skip: bool) -> int:
    """Write the features of a set; return the number of embedded tracklets. Complete parts are kept."""
    groups = list(grouped(data_set.tracklets))
    with parts.opened() as resumed:
        left = [number for number in range(len(groups)) if not (resumed and parts.has(number))]
        done = len(data_set.tracklets) - sum(len(groups[number]) for number in left)
        if done:
            _log.info("resuming: %s of %s tracklets are done", f"{done:,}", f"{len(data_set.tracklets):,}")
        work = write_parts(model, groups, left, parts, folder, skip)
        for _ in console.follow(work, "embedded", len(data_set.tracklets), done):
            pass
        parts.join(len(groups))
    return len(Gallery(parts.file))


def grouped(tracklets: Sequence[Tracklet]) -> Iterator[dict[int, Tracklet]]:
    """Yield tracklets by their number, in groups with a bounded number of frames."""
    group: dict[int, Tracklet] = {}
    frames = 0
    for number, tracklet in enumerate(tracklets):
        group[number] = tracklet
        frames += min(len(tracklet.frames), LONGEST)
        if frames >= _FRAMES_AT_ONCE:
            yield group
            group, frames = {}, 0
    if group:
        yield group


def write_parts(
    model: "StoredModel",
    groups: Sequence[dict[int, Tracklet]],
    numbers: Sequence[int],
    parts: Parts,
    folder: Path,
    skip: bool,
) -> Iterator[int]:
    """Embed groups and write each as a part; yield every tracklet's number."""

    def load(tracklet: Tracklet) -> NDArray[np.uint8]:
        return load_frames(tracklet, model, skip)

    for number in numbers:
        frames = dict(zip(groups[number], console.in_threads(load, groups[number].values()), strict=True))
        kept = {key: groups[number][key] for key, loaded in frames.items() if len(loaded)}
        features = np.empty((0, model.dimension), np.float32)
        if kept:
            features = model.embed([frames[key] for key in kept])
        parts.write(number, table(kept, features, folder, parts.schema))
        yield from groups[number]


def load_frames(tracklet: Tracklet, model: "StoredModel", skip: bool = False) -> NDArray[np.uint8]:
    """Return the first 128 frames of a tracklet at the size of the network, ``[time, height, width, 3]``."""
    loaded = []
    for frame in tracklet.frames[:LONGEST]:
        try:
            image = decode_image(frame)
            with at_field(str(frame.path)):
                images.check_size(image)
            loaded.append(images.resize(image, model.height, model.width))
        except DataError as error:
            if not skip:
                raise
            _log.info("skipped: %s", error)
    return np.stack(loaded) if loaded else np.empty((0, model.height, model.width, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for."""

    name: str
    feature: NDArray[np.float32]
    frame: Frame


def rank_command(chosen: argparse.Namespace) -> None:
    """Rank a gallery for every query."""
    gallery = Gallery(chosen.gallery)
    if chosen.sheet is not None:
        check_images(chosen.images, gallery)
        check_sheet(chosen.sheet, [chosen.query, chosen.images or Path(gallery.about.folder)])
    queries = iter(read_queries(chosen, gallery))
    at_once = min(_QUERIES_AT_ONCE, max(1, _MATCHES_AT_ONCE // min(chosen.top, len(gallery))))
    shown: list[tuple[Query, list[tuple[Match, Row]]]] = []
    while block := list(itertools.islice(queries, at_once)):
        found = nearest(np.stack([query.feature for query in block]), gallery, chosen.top)
        rows = gallery.rows([match.number for matches in found for match in matches])
        for query, matches in zip(block, found, strict=True):
            candidates = [(match, rows[match.number]) for match in matches]
            print_ranking(query, candidates, gallery, as_json=chosen.json)
            if len(shown) < _ON_SHEET:
                shown.append((query, candidates[:_ON_SHEET]))
    if chosen.sheet:
        draw_sheet(shown, gallery, chosen)


def check_images(given: Path | None, gallery: Gallery) -> None:
    """Check that the images of a gallery are where they are looked for; raises DataError."""
    folder = (given or Path(gallery.about.folder)).expanduser()
    if not (path := gallery.rows([0])[0].frame(folder).path).exists():
        where = f"--images {given}" if given else str(gallery.path)
        raise DataError(f"{where}: {path} does not exist; give the gallery's folder of images as --images")


def check_sheet(sheet: Path, pictures: Sequence[Path]) -> None:
    """Check that a sheet overwrites no image of the query or the gallery; raises DataError."""
    for path in (each.expanduser().resolve() for each in pictures):
        if sheet.exists() and sheet.resolve().is_relative_to(path):
            raise DataError(f"--sheet {sheet}: would overwrite an image of {path}; choose another name")


def read_queries(chosen: argparse.Namespace, gallery: Gallery) -> Iterator[Query]:
    """Yield the queries: one tracklet, or those of another file of features."""
    path: Path = chosen.query.expanduser()
    if path.suffix == ".parquet":
        other = Gallery(path)
        gallery.check_same_model(other.about.model_checksum, str(path))
        yield from queries_of(other)
        return
    tracklet = one_tracklet(path)
    with opened_model(chosen.model or gallery.about.model, chosen.tracking) as model:
        gallery.check_same_model(model.checksum, model.uri)
        feature = model.embed([load_frames(tracklet, model)])[0]
    yield Query(str(path), feature, tracklet.frames[len(tracklet.frames) // 2])


def queries_of(other: Gallery) -> Iterator[Query]:
    """Yield the tracklets of a file as queries."""
    folder = Path(other.about.folder)
    for features, rows in other.tracklets(_QUERIES_AT_ONCE):
        for feature, row in zip(features, rows, strict=True):
            yield Query(row.path, feature, row.frame(folder))


def one_tracklet(path: Path) -> Tracklet:
    """Return an image, or the images of a folder, as one tracklet."""
    if path.is_dir():
        tracklet = sequence("", "", path)
        _log.info("%s: %d images of one tracklet", path, len(tracklet.frames))
        return tracklet
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an image, a folder of images, or a .parquet file")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: not an image, a folder of images, or a .parquet file")
    return still("", "", path)


def print_ranking(
    query: Query, candidates: Sequence[tuple[Match, Row]], gallery: Gallery, *, as_json: bool
) -> None:
    """Print what was found for a query, and whether the nearest is near enough."""
    verdict = judge(candidates[0][0].distance, gallery)
    if as_json:
        found = [{"distance": match.distance, **asdict(row)} for match, row in candidates]
        record = {"query": query.name, **asdict(verdict), "candidates": found}
        sys.stdout.write(json.dumps(record) + "\n")
        return
    listing = Table(title=escape(query.name), title_justify="left")
    for column in ("rank", "distance", "identity", "camera", "path"):
        side: Literal["left", "right"] = "right" if column in ("rank", "distance") else "left"
        listing.add_column(column, justify=side, overflow="fold")
    for rank, (match, row) in enumerate(candidates, 1):
        cells = (str(rank), f"{match.distance:.4f}", row.identity or "-", row.camera or "-", row.path)
        listing.add_row(*map(escape, cells))
    OUT.print(listing)
    OUT.print(f"{verdict.decision}: {verdict.reason}", markup=False, highlight=False, soft_wrap=True)


def _labels(row: Row) -> tuple[str, str]:
    """Return identity and camera of a tracklet; without labels its folder and file, or its file alone."""
    if row.identity:
        return row.identity, row.camera or ""
    path = Path(row.path)
    if path.parent.name:
        return path.parent.name, path.name
    return path.name[:_LABEL], path.name[_LABEL:]


def draw_sheet(
    shown: Sequence[tuple[Query, Sequence[tuple[Match, Row]]]], gallery: Gallery, chosen: argparse.Namespace
) -> None:
    """Draw queries and what was found for them."""
    from trainables.evaluation.pictures import Shown, draw_rankings  # imports Matplotlib

    folder = (chosen.images or Path(gallery.about.folder)).expanduser()
    rankings = []
    for query, candidates in shown:
        cells = [
            Shown(thumbnail(row.frame(folder)), (*_labels(row), f"{match.distance:.3f}"))
            for match, row in candidates
        ]
        verdict = judge(candidates[0][0].distance, gallery)
        rankings.append(
            (f"{query.name}: {verdict.decision}; {verdict.reason}", thumbnail(query.frame), cells)
        )
    notes = ("Below each frame: identity and camera, or folder and file; Euclidean distance.",)
    try:
        draw_rankings(f"The nearest of {len(gallery):,} tracklets", notes, rankings, chosen.sheet)
    except OSError as error:
        raise DataError(f"{chosen.sheet}: cannot be written ({error.strerror or error})") from error
    _log.info("sheet: %s", chosen.sheet)


def thumbnail(frame: Frame) -> NDArray[np.uint8]:
    """Return a frame of fixed size, ``[128, 64, 3]``."""
    return images.resize(decode_image(frame), _SHEET_HEIGHT, _SHEET_HEIGHT // 2)


if __name__ == "__main__":
    sys.exit(main())
