"""``python -m trainables.data``: inspect a set, check it, pack it, or generate one."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from trainables import console
from trainables.console import ERR, OUT, Parser, busy, picture, positive
from trainables.data.decoding import decode
from trainables.data.packing import Pack, pack
from trainables.data.readers import READERS, check_options, read_checked
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Tracklet
from trainables.data.walkers import layouts
from trainables.errors import DataError

EXAMPLES = """examples:
  python -m trainables.data inspect prid2011 /data/prid_2011 --sheet prid.png
  python -m trainables.data inspect prid2011 /data/prid_2011 --option minimum_frames=28
  python -m trainables.data verify mars /data/MARS --skip-unreadable
  python -m trainables.data pack cuhk03 /data/CUHK03 --out cuhk03.arrow --height 128 --width 64
  python -m trainables.data generate prid2011 /tmp/walkers --identities 60 --seed 0

layouts and their options (a LAYOUT may also be package.module:Class of a reader):
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    It is 2, with one line on stderr, for bad input, 1 where the output cannot be written, 130 after Ctrl-C.
    """
    chosen = parser().parse_args(arguments)
    return console.run(chosen.command, chosen)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line, whose help lists the options of every layout."""
    options = "\n".join(
        f"  {layout:<11} {', '.join(reader.Options.model_fields) or '-'}"
        for layout, reader in READERS.items()
    )
    top = Parser(
        prog="python -m trainables.data",
        description=__doc__.partition(": ")[2] if __doc__ else None,
        epilog=EXAMPLES + options,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        names = [*layouts.LAYOUTS] if command is generate_command else [*READERS, "package.module:Class"]
        sub.add_argument("layout", metavar="LAYOUT", help=f"one of {', '.join(names)}")
        sub.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the set")
        if command is not generate_command:
            about = "option of the layout, for example minimum_frames=28; may be repeated"
            sub.add_argument("--option", metavar="NAME=VALUE", action="append", default=[], help=about)
        return sub

    inspect = add("inspect", inspect_command, "count identities, tracklets and frames, and show the splits")
    inspect.add_argument(
        "--sheet", metavar="FILE", type=picture, help="also draw a contact sheet (.png, .jpg)"
    )

    verify = add("verify", verify_command, "read the set and decode every frame")
    verify.add_argument(
        "--skip-unreadable", action="store_true", help="count unreadable frames instead of stopping"
    )

    packing = add("pack", pack_command, "write all frames to one file for training")
    packing.add_argument("--out", metavar="FILE", type=Path, required=True, help="file to write")
    packing.add_argument(
        "--height", type=positive, default=64, help="height of a frame, pixels (default: 64)"
    )
    packing.add_argument("--width", type=positive, default=48, help="width of a frame, pixels (default: 48)")
    packing.add_argument(
        "--flow", choices=("none", "dis"), default="none", help="optical flow (default: none)"
    )
    packing.add_argument("--skip-unreadable", action="store_true", help="skip unreadable frames")

    generate = add("generate", generate_command, "generate walkers in the layout of a published set")
    for name, field in layouts.GenerateConfig.model_fields.items():
        action = {"action": "store_true"} if field.annotation is bool else {"metavar": "N"}
        default = "that of the layout" if field.default is None else field.default
        about = f"{field.description} (default: {default})"
        generate.add_argument(f"--{name}", default=argparse.SUPPRESS, help=about, **action)  # type: ignore[arg-type]
    return top


def inspect_command(chosen: argparse.Namespace) -> None:
    """Print the counts, splits and notes of a set, and draw its contact sheet if requested."""
    data_set = open_set(chosen)
    OUT.print(counts_table(data_set))
    OUT.print(splits_table(data_set))
    for note in data_set.notes:
        OUT.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if chosen.sheet:
        from trainables.data.contact_sheet import contact_sheet  # imports Matplotlib

        OUT.print(f"contact sheet: {contact_sheet(data_set, chosen.sheet)}", soft_wrap=True, highlight=False)


def counts_table(data_set: DataSet) -> Table:
    """Return a table with one row for each camera and one for the whole set."""
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
    """Return the cells of a row: identities without junk and distractors, tracklets, frames, and lengths."""
    lengths = [len(tracklet.frames) for tracklet in tracklets]
    identities = {tracklet.identity for tracklet in tracklets} - {JUNK, DISTRACTOR}
    whole = [len(identities), len(lengths), sum(lengths), min(lengths)]
    return [f"{number:,}" for number in whole] + [f"{sum(lengths) / len(lengths):.1f}", f"{max(lengths):,}"]


def splits_table(data_set: DataSet) -> Table:
    """Return a table with the tracklets and identities of each part of each split."""
    table = Table(title="splits: tracklets (identities)", title_justify="left")
    for column in ("split", "train", "query", "gallery"):
        table.add_column(column, justify="right")
    for number, split in enumerate(data_set.splits):
        parts = []
        for part in (split.train, split.query, split.gallery):
            identities = {data_set.tracklets[i].identity for i in part} - {JUNK, DISTRACTOR}
            parts.append(f"{len(part):,} ({len(identities):,})")
        table.add_row(str(number), *parts)
    return table


def verify_command(chosen: argparse.Namespace) -> None:
    """Decode every frame; stop at the first unreadable one, or report all of them."""
    data_set = open_set(chosen)

    def faults(tracklet: Tracklet) -> list[DataError]:
        errors = []
        for frame in tracklet.frames:
            try:
                decode(frame)
            except DataError as error:
                if not chosen.skip_unreadable:
                    raise
                errors.append(error)
        return errors

    unreadable, results = 0, console.in_threads(faults, data_set.tracklets)
    for errors in console.follow(results, "decoded", len(data_set.tracklets)):
        unreadable += len(errors)
        for error in errors:
            ERR.print(f"unreadable: {error}", markup=False, highlight=False, soft_wrap=True)
    total = sum(len(tracklet.frames) for tracklet in data_set.tracklets)
    OUT.print(f"{total:,} frames checked, {unreadable:,} unreadable", highlight=False)


def pack_command(chosen: argparse.Namespace) -> None:
    """Pack a set into one file, which may replace a pack and nothing else."""
    if chosen.out.exists() and not chosen.out.is_dir():
        try:
            Pack.open(chosen.out)
        except DataError as error:
            raise DataError(f"--out {chosen.out}: exists and is not a pack; name another file") from error
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
        )
    size = chosen.out.stat().st_size / 2**20
    OUT.print(
        f"{chosen.out}: {len(packed):,} tracklets, {packed.lengths.sum():,} frames, {size:,.1f} MiB,"
        f" digest {packed.digest}",
        highlight=False,
        soft_wrap=True,
    )


def generate_command(chosen: argparse.Namespace) -> None:
    """Generate walkers in the layout of a published set."""
    fields = {name: getattr(chosen, name) for name in layouts.GenerateConfig.model_fields if name in chosen}
    try:
        config = layouts.GenerateConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"--{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
    with busy(f"generating {config.identities} walkers in the layout of {chosen.layout}"):
        layouts.write(chosen.layout, chosen.folder, config)


def open_set(chosen: argparse.Namespace) -> DataSet:
    """Read the set that the command line names."""
    checked = check_options(chosen.layout, console.named_values(chosen.option))
    with busy(f"reading {chosen.folder}"):
        return read_checked(chosen.layout, chosen.folder, chosen.folder.absolute().name, checked)


if __name__ == "__main__":
    sys.exit(main())
