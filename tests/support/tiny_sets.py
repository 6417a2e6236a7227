"""Tiny sets in every layout: generated where the generator can, hand-made where it cannot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from trainables.data.walkers import layouts

PEOPLE = 6
FRAMES = 3
Unpacked = Callable[[str], Path]


def save_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 4, 3), value % 256, np.uint8)).save(path)


def write_set(layout: str, folder: Path) -> None:
    if layout in layouts.LAYOUTS:
        config = layouts.GenerateConfig(identities=PEOPLE, frames=FRAMES)
        layouts.write(layout, folder, config)
        return
    for person in range(PEOPLE):
        for camera in ("front", "side"):
            for number in range(2):
                base = folder / layout / f"p{person}" / camera
                if layout == "images":
                    save_image(base / f"{number}.jpg", person)
                else:
                    for frame in range(FRAMES):
                        save_image(base / f"t{number}" / f"{frame:03}.png", person)
