"""Sets to read: tiny ones in every layout, and the real cut."""

import os
import shutil
from pathlib import Path

import pytest
from tiny_sets import Unpacked, write_set


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """The folder of a tiny set in a layout, written once; not to be changed."""
    folders: dict[str, Path] = {}

    def write(layout: str) -> Path:
        if layout not in folders:
            folders[layout] = tmp_path_factory.mktemp("sets") / f"tiny-{layout}"
            write_set(layout, folders[layout])
        return folders[layout]

    return write


@pytest.fixture
def unpacked(written: Unpacked, tmp_path: Path) -> Unpacked:
    """A copy of a tiny set, to be damaged."""

    def copy(layout: str) -> Path:
        return Path(shutil.copytree(written(layout), tmp_path / f"tiny-{layout}"))

    return copy


@pytest.fixture
def real_data() -> Path:
    """The folder of the real cut, from REID_DATA or next to the repository."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("REID_DATA", beside))
    if not (folder / "prid_2011").is_dir():
        pytest.skip(f"no real re-ID data in {folder}: set REID_DATA to its folder")
    return folder
