"""``python -m trainables.data``: look at a set, check it, pack it, or generate one."""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trainables.data.contact_sheet import contact_sheet
from trainables.data.decoding import decode
from trainables.data.packing import pack
from trainables.data.readers import LAYOUTS, check_options, find_layout, read
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError, DataSet, Tracklet
from trainables.data.walkers import layouts as walkers

EXAMPLES = """examples:
  python -m trainables.data inspect prid2011 /data/prid_2011 --sheet prid.png
  python -m trainables.data inspect prid2011 /data/prid_2011 --option minimum_frames=28
  python -m trainables.data verify mars /data/MARS --skip-unreadable
  python -m trainables.data pack cuhk03 /data/CUHK03 --out cuhk03.arrow --height 128 --width 64
  python -m trainables.data generate prid2011 /tmp/walkers --identities 60 --seed 0

layouts and their options:
"""
FAULT = 2
LINE_SECONDS = 4.0
OUT = Console()
ERR = Console(stderr=True)

Item = TypeVar("Item")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all is well, 2 with one line on stderr when the data is at fault."""
    chosen = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = chosen.command
    try:
        command(chosen)
    except DataError as error:
        ERR.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAULT
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line, with the options of every layout in its help."""
    options = "\n".join(
        f"  {layout.name:<11} {', '.join(layout.options.model_fields) or '-'}" for layout in LAYOUTS.values()
    )
    top = argparse.ArgumentParser(
        prog="python -m trainables.data",
        description=__doc__.partition(": ")[2] if __doc__ else None,
        epilog=EXAMPLES + options,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        there = walkers.LAYOUTS if command is generate_command else LAYOUTS
        sub.add_argument("layout", metavar="LAYOUT", help=f"one of {', '.join(there)}")
        sub.add_argument("folder", metavar="FOLDER", type=Path, help="the set's own folder")
        if command is not generate_command:
            about = "an option of the layout, as minimum_frames=28; may be repeated"
            sub.add_argument("--option", metavar="NAME=VALUE", action="append", default=[], help=about)
        return sub

    inspect = add("inspect", inspect_command, "count what is there and show the splits")
    inspect.add_argument("--sheet", metavar="FILE", type=Path, help="also draw a contact sheet (.png, .jpg)")

    verify = add("verify", verify_command, "read everything and decode every frame")
    verify.add_argument("--skip-unreadable", action="store_true", help="count unreadable frames, do not stop")

    packing = add("pack", pack_command, "write every frame to one file for training")
    packing.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write")
    packing.add_argument("--height", type=positive, default=64, help="rows of a frame (64)")
    packing.add_argument("--width", type=positive, default=48, help="columns of a frame (48)")
    packing.add_argument("--flow", choices=("none", "dis"), default="none", help="optical flow (none)")
    packing.add_argument("--skip-unreadable", action="store_true", help="leave unreadable frames out")

    generate = add("generate", generate_command, "draw a set of walkers in an original layout")
    for name, field in walkers.GenerateConfig.model_fields.items():
        action = {"action": "store_true"} if field.annotation is bool else {"metavar": "N"}
        default = "as the layout has" if field.default is None else field.default
        about = f"{field.description} (default: {default})"
        generate.add_argument(f"--{name}", default=argparse.SUPPRESS, help=about, **action)  # type: ignore[arg-type]
    return top


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def inspect_command(chosen: argparse.Namespace) -> None:
    """Print the counts, splits and notes of a set; draw its contact sheet when asked."""
    data_set = open_set(chosen)
    OUT.print(counts_table(data_set))
    OUT.print(splits_table(data_set))
    for note in data_set.notes:
        OUT.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if chosen.sheet:
        OUT.print(f"contact sheet: {contact_sheet(data_set, chosen.sheet)}", soft_wrap=True, highlight=False)


def counts_table(data_set: DataSet) -> Table:
    """One row for each camera and one for the whole set."""
    table = Table(title=f"{data_set.name}: {data_set.kind} set", title_justify="left")
    table.add_column("camera")
    for column in ("identities", "tracklets", "frames", "min", "mean", "max"):
        table.add_column(column, justify="right")
    cameras = sorted({tracklet.camera for tracklet in data_set.tracklets})
    for camera in cameras:
        table.add_row(camera, *counts([t for t in data_set.tracklets if t.camera == camera]))
    table.add_section()
    table.add_row("all", *counts(data_set.tracklets), style="bold")
    return table


def counts(tracklets: Sequence[Tracklet]) -> list[str]:
    """Identities (junk and distractors are none), tracklets, frames and frames per tracklet."""
    lengths = [len(tracklet.frames) for tracklet in tracklets]
    identities = {tracklet.identity for tracklet in tracklets} - {JUNK, DISTRACTOR}
    whole = [len(identities), len(lengths), sum(lengths), min(lengths)]
    return [f"{number:,}" for number in whole] + [f"{sum(lengths) / len(lengths):.1f}", f"{max(lengths):,}"]


def splits_table(data_set: DataSet) -> Table:
    """Tracklets and identities of each part of each split."""
    table = Table(title="splits: tracklets (identities)", title_justify="left")
    for column in ("split", "train", "query", "gallery"):
        table.add_column(column, justify="right")
    for number, split in enumerate(data_set.splits):
        parts = []
        for part in (split.train, split.query, split.gallery):
            people = {data_set.tracklets[i].identity for i in part} - {JUNK, DISTRACTOR}
            parts.append(f"{len(part):,} ({len(people):,})")
        table.add_row(str(number), *parts)
    return table


def verify_command(chosen: argparse.Namespace) -> None:
    """Decode every frame: stop at the first that is unreadable, or count and name them."""
    data_set = open_set(chosen)

    def faults(tracklet: Tracklet) -> list[DataError]:
        found = []
        for frame in tracklet.frames:
            try:
                decode(frame)
            except DataError as error:
                if not chosen.skip_unreadable:
                    raise
                found.append(error)
        return found

    unreadable = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        try:
            for found in follow(executor.map(faults, data_set.tracklets), data_set):
                unreadable += len(found)
                for error in found:
                    ERR.print(f"unreadable: {error}", markup=False, highlight=False, soft_wrap=True)
        finally:
            executor.shutdown(cancel_futures=True)
    total = sum(len(tracklet.frames) for tracklet in data_set.tracklets)
    OUT.print(f"{total:,} frames checked, {unreadable:,} unreadable", highlight=False)


def pack_command(chosen: argparse.Namespace) -> None:
    """Pack a set into one file."""
    data_set = open_set(chosen)
    total = sum(len(tracklet.frames) for tracklet in data_set.tracklets)
    with busy(f"packing {total:,} frames into {chosen.out}"):
        packed = pack(
            data_set,
            chosen.out,
            height=chosen.height,
            width=chosen.width,
            flow=chosen.flow,
            unreadable="skip" if chosen.skip_unreadable else "stop",
            say=say,
        )
    size = chosen.out.stat().st_size / 2**20
    OUT.print(
        f"{chosen.out}: {len(packed):,} tracklets, {packed.lengths.sum():,} frames, {size:,.1f} MiB,"
        f" digest {packed.digest}",
        highlight=False,
        soft_wrap=True,
    )


def generate_command(chosen: argparse.Namespace) -> None:
    """Draw a set of walkers in an original layout."""
    given = {name: getattr(chosen, name) for name in walkers.GenerateConfig.model_fields if name in chosen}
    try:
        config = walkers.GenerateConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"--{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
    with busy(f"generating {config.identities} walkers in the layout of {chosen.layout}"):
        walkers.write(chosen.layout, chosen.folder, config, say)


def open_set(chosen: argparse.Namespace) -> DataSet:
    """The set that the command line names."""
    options: dict[str, Any] = {}
    for option in chosen.option:
        name, equals, value = option.partition("=")
        if not equals:
            raise DataError(f"--option {option}: no value; expected NAME=VALUE, as minimum_frames=28")
        options[name] = value
    check_options(find_layout(chosen.layout), options)
    with busy(f"reading {chosen.folder}"):
        return read(chosen.layout, chosen.folder, name=chosen.folder.absolute().name, **options)


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say what is being done, and that it still is: a spinner, or now and then a line in a log."""
    say(doing)
    if ERR.is_terminal:
        with ERR.status(doing):
            yield
        return
    finished, started = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not finished.wait(LINE_SECONDS):
            say(f"{doing}: {time.monotonic() - started:.0f} s so far")

    speaker = threading.Thread(target=repeat, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        finished.set()
        speaker.join()


def follow(results: Iterable[Item], data_set: DataSet) -> Iterator[Item]:
    """Pass results on, one per tracklet, and show how far it is: a bar, or now and then a line in a log."""
    count = len(data_set.tracklets)
    if ERR.is_terminal:
        yield from track(results, "decoding", total=count, console=ERR)
        return
    spoken = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        if time.monotonic() - spoken > LINE_SECONDS:
            spoken = time.monotonic()
            say(f"decoded {done:,} of {count:,} tracklets")


def say(line: str) -> None:
    """One line of progress on stderr."""
    ERR.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
