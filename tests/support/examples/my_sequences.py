"""my_sequences.py, for data.sets.NAME.layout: my_sequences:NamedReader"""

from pathlib import Path

from trainables.components import Options
from trainables.data.readers import Reader
from trainables.data.readers.folders import random_halves, split_by_identity
from trainables.data.tracklet import DataSet, Frame, Tracklet


class NamedReader(Reader):
    """Frames as p01_c2_0003.png, in any folders: identity, camera, number. Ten random halves train."""

    kind = "sequence"
    expected = "expected frames as p01_c2_0003.png"

    def recognise(self, folder: Path) -> bool:
        return any(folder.rglob("p*_c*_*.png"))

    def read(self, folder: Path, name: str, options: Options) -> DataSet:
        frames: dict[tuple[str, str], list[Frame]] = {}
        for file in sorted(folder.rglob("p*_c*_*.png"), key=lambda file: file.name):
            identity, camera, _ = file.stem.split("_")
            frames.setdefault((identity, camera), []).append(Frame(file))
        tracklets = tuple(Tracklet(*labels, tuple(own)) for labels, own in frames.items())
        halves = random_halves(sorted({identity for identity, _ in frames}), 10, seed=0)
        splits = [split_by_identity(tracklets, *half, lambda each: each.camera == "c1") for half in halves]
        return DataSet(name, "sequence", tracklets, tuple(splits))
