"""The data path: packing, augmented batches, and memory of worker processes, against a plain Pillow loop.

The files are those of a MARS folder, ``$REID_DATA/MARS``; without it, generated JPEG files of the same size.
The peer of the batches reads each frame of the same clips from its file and changes it as torchreid's
documentation describes ("random_flip", "random_crop" as Random2DTranslation, "random_erase", then a tensor):
written here with Pillow and torch, because torchreid itself needs torchvision. A second peer only reads and
resizes. All run in one thread, in turns.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from tests.benchmarks.table import Comparison, Row, alternate
from trainables.components import Options
from trainables.data import packing
from trainables.data.augmentation import AugmentationConfig
from trainables.data.loading import Batches
from trainables.data.packing import Pack
from trainables.data.parts import Part
from trainables.data.readers import read_checked
from trainables.data.sampling import BatchConfig, Clip, share
from trainables.data.tracklet import DataSet, Frame, Tracklet

HEIGHT, WIDTH, ERASE = 64, 48, 0.5
FILE_HEIGHT, FILE_WIDTH = 128, 64
BILINEAR = Image.Resampling.BILINEAR


def rows(quick: bool) -> list[Row]:
    """Return the rows of the data path."""
    repetitions = 2 if quick else 7
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data_set = read_or_generate(folder, identities=16 if quick else 100)
            path = folder / "set.arrow"
            packed = packing_row(data_set, path, repetitions)
            # This process must not map the pack while the memory of others is measured.
            memory = list(memory_rows(path, (1, 4) if quick else (1, 4, 16)))
            return [*batch_rows(data_set, Pack.open(path), repetitions), packed, *memory]
    finally:
        torch.set_num_threads(threads)


def read_or_generate(folder: Path, identities: int) -> DataSet:
    """Return the sequences of ``$REID_DATA/MARS``, or write JPEG files of smoothed noise in 2 cameras."""
    if root := os.environ.get("REID_DATA"):
        return read_checked("mars", Path(root) / "MARS", "mars", Options())
    rng = np.random.default_rng(0)
    tracklets = []
    for identity in range(identities):
        for camera in range(2):
            frames = []
            for number in range(16):
                frames.append(Frame(folder / f"{identity}_{camera}_{number}.jpg"))
                noise = rng.integers(0, 256, (FILE_HEIGHT, FILE_WIDTH, 3), np.uint8)
                picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
                Image.fromarray(picture).save(frames[-1].path, quality=90)
            tracklets.append(Tracklet(str(identity), str(camera), tuple(frames)))
    return DataSet("generated", "sequence", tuple(tracklets), ())


def packing_row(data_set: DataSet, path: Path, repetitions: int) -> Row:
    """Pack the set on all cores, against a loop that decodes, resizes and saves on one core."""
    files = [frame.path for tracklet in data_set.tracklets for frame in tracklet.frames]

    def ours() -> None:
        packing.pack(data_set, path, height=HEIGHT, width=WIDTH, flow="none", unreadable="stop")

    def peer() -> None:
        frames = np.empty((len(files), HEIGHT, WIDTH, 3), np.uint8)
        for position, file in enumerate(files):
            frames[position] = np.asarray(read(file))
        np.save(path.with_suffix(".npy"), frames)

    compared = alternate(ours, peer, repetitions)
    processor = alternate_processor(ours, peer, repetitions)
    cores = len(os.sched_getaffinity(0))
    return Row(
        f"packing of {len(files):,} files on {cores} cores",
        f"{len(files) / statistics.median(compared.ours):,.0f} frames/s",
        f"plain Pillow loop: {len(files) / statistics.median(compared.peer):,.0f} frames/s",
        f"{1 / compared.ratio:.2f} x in wall time; per second of processor time {1 / processor.ratio:.2f} x",
        f"{0.9 * cores:.1f} x",
        f"wall: {compared.raw}; processor: {processor.raw}",
    )


def alternate_processor(
    ours: Callable[[], object], peer: Callable[[], object], repetitions: int
) -> Comparison:
    """Measure the processor time of two functions in turns; unlike wall time, it ignores other processes."""

    def processor(function: Callable[[], object]) -> float:
        begin = time.process_time()
        function()
        return time.process_time() - begin

    ours()
    peer()
    pairs = [(processor(ours), processor(peer)) for _ in range(repetitions)]
    return Comparison(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def batch_rows(data_set: DataSet, pack: Pack, repetitions: int) -> Iterator[Row]:
    """Load the augmented batches of an epoch, against two peers that read the same clips from files."""
    batch = BatchConfig(identities=8, sequences=2, frames=8)
    augmentation = AugmentationConfig(erase=ERASE)
    part = Part(pack, np.arange(len(pack)))
    batches = Batches([part], [], batch, augmentation, seed=0, rank=0, workers=1)
    plan = batches.sequences.sampler.epoch(0, batches.per_epoch)
    frames = sum(len(clip.frames) for clips in plan for clip in clips)
    draw = random.Random(0)

    def ours() -> None:
        for number in range(batches.per_epoch):
            batches[0, number]

    def peer(change: Callable[[Image.Image], object]) -> None:
        for clips in plan:
            for clip in share(clips, 0, 1):
                for file in files_of(data_set, clip):
                    change(file)

    def files_of(data_set: DataSet, clip: Clip) -> list[Path]:
        return [data_set.tracklets[clip.tracklet].frames[index].path for index in clip.frames]

    changes = {
        "torchreid's reading and transforms, as documented": lambda file: torchreid(file, draw),
        "plain Pillow loop": lambda file: np.asarray(read(file)),
    }
    for name, change in changes.items():
        compared = alternate_processor(ours, lambda change=change: peer(change), repetitions)
        yield Row(
            f"packed data → augmented batch, {HEIGHT}x{WIDTH}, one core",
            f"{frames / statistics.median(compared.ours):,.0f} frames/s",
            f"{name}: {frames / statistics.median(compared.peer):,.0f} frames/s",
            f"{1 / compared.ratio:.1f} x",
            "10 x",
            f"{frames:,} frames: {compared.raw}",
        )


def read(file: Path) -> Image.Image:
    """Read and resize one file with Pillow."""
    with Image.open(file) as image:
        return image.convert("RGB").resize((WIDTH, HEIGHT), BILINEAR)


def torchreid(file: Path, draw: random.Random) -> torch.Tensor:
    """Return a frame as torchreid's transforms do: resize, flip, translate, tensor, normalise, erase."""
    image = read(file)
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.random() < 0.5:  # Random2DTranslation: enlarge by 1/8, then crop
        wide, tall = round(WIDTH * 1.125), round(HEIGHT * 1.125)
        left, top = draw.randint(0, wide - WIDTH), draw.randint(0, tall - HEIGHT)
        image = image.resize((wide, tall), BILINEAR).crop((left, top, left + WIDTH, top + HEIGHT))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    tensor.sub_(MEAN).div_(DEVIATION)
    if draw.random() < ERASE:
        area, ratio = draw.uniform(0.02, 0.4) * HEIGHT * WIDTH, draw.uniform(0.3, 1 / 0.3)
        tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if wide < WIDTH and tall < HEIGHT:
            top, left = draw.randint(0, HEIGHT - tall), draw.randint(0, WIDTH - wide)
            tensor[:, top : top + tall, left : left + wide] = MEAN
    return tensor


MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def memory_rows(path: Path, counts: tuple[int, ...]) -> Iterator[Row]:
    """Measure the memory of processes that open one pack and load an epoch of batches each."""

    def memories(processes: list[subprocess.Popen[str]]) -> list[float]:
        """Wait for a line of every process, then measure all and let them continue."""
        for process in processes:
            process.stdout.readline()
        sizes = [proportional(Path(f"/proc/{process.pid}/smaps_rollup").read_text()) for process in processes]
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return sizes

    for count in counts:
        command = [sys.executable, "-m", "tests.benchmarks.data", str(path), str(count)]
        processes = [
            subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        before, after = memories(processes), memories(processes)  # before opening the pack, and after all
        mapped = [pack_memory(process.pid, path) for process in processes]
        for process in processes:
            process.communicate("\n")
        size = path.stat().st_size / 2**20
        raw = " ".join(f"{share:.1f}" for share in mapped)
        yield Row(
            f"memory of the data on a node, {count} worker process{'es' if count > 1 else ''}",
            f"{sum(mapped):.1f} MiB",
            f"the pack itself: {size:.1f} MiB",
            f"{sum(mapped) / size:.2f} copies",
            "1 copy",
            f"proportional set size of the pack, MiB a process: {raw}; of whole processes before opening it"
            f" {sum(before):.0f} MiB, after all batches {sum(after):.0f} MiB",
        )


def pack_memory(pid: int, path: Path) -> float:
    """Return the proportional set size of a process's mapping of a file, in MiB."""
    memory, inside = 0.0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):  # the header of a mapping
            inside = line.endswith(str(path))
        elif inside:
            memory += proportional(line)
    return memory


def proportional(text: str) -> float:
    """Return the proportional set size in a text of smaps, in MiB."""
    sizes = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")]
    return sum(sizes) / 1024


def work(path: Path, workers: int, rank: int) -> None:
    """Read all frames of a pack and load a worker's share of an epoch; wait for input before and after."""
    print("started", flush=True)
    sys.stdin.readline()
    pack = Pack.open(path)
    for tracklet in range(len(pack)):
        pack.frames(tracklet).sum()
    part = Part(pack, np.arange(len(pack)))
    config = BatchConfig(identities=8, sequences=2, frames=8)
    batches = Batches([part], [], config, AugmentationConfig(erase=ERASE), seed=0, rank=rank, workers=workers)
    for number in range(batches.per_epoch):
        batches[0, number]
    print("loaded", flush=True)
    for _ in range(2):
        sys.stdin.readline()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
