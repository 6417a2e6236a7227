"""``python -m trainables.data``: what it prints, what it writes, and how it refuses."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainables.data.__main__ as commands
from tests.support.paths import ROOT
from tests.support.tiny_sets import FRAMES, PEOPLE, Unpacked
from trainables import console
from trainables.data.__main__ import main
from trainables.data.contact_sheet import contact_sheet
from trainables.data.packing import Pack
from trainables.data.readers import READERS, read
from trainables.data.tracklet import DataSet
from trainables.data.walkers import layouts
from trainables.errors import DataError

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("layout", READERS)
def test_inspect_prints_counts_and_splits(layout: str, written: Unpacked, capsys: Captured) -> None:
    assert main(["inspect", layout, str(written(layout))]) == 0
    out = capsys.readouterr().out
    data_set = read(layout, written(layout), name="set")
    total = next(line for line in out.splitlines() if line.startswith("│ all"))
    lengths = [len(tracklet.frames) for tracklet in data_set.tracklets]
    cells = [cell.strip() for cell in total.split("│")[2:-1]]
    assert cells == [
        str(PEOPLE),
        str(len(lengths)),
        str(sum(lengths)),
        str(min(lengths)),
        f"{np.mean(lengths):.1f}",
        str(max(lengths)),
    ]
    for note in data_set.notes:
        assert f"note: {note}" in out


def test_inspect_option_reaches_the_reader(written: Unpacked, capsys: Captured) -> None:
    folder = str(written("images"))
    assert main(["inspect", "images", folder, "--option", "random_splits=4", "--option", "seed=1"]) == 0
    assert "│     3 │" in capsys.readouterr().out
    assert main(["inspect", "images", folder, "--option", "random_splits"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err
    assert main(["inspect", "images", folder, "--option", "random_splits=x"]) == 2
    assert "option random_splits: Input should be a valid integer" in capsys.readouterr().err
    assert main(["inspect", "images", folder, "--option", "name=x"]) == 2
    assert "option name: no such option" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notes.txt", "empty", "broken.arrow"])
def test_pack_replaces_nothing_but_a_pack(
    name: str, written: Unpacked, tmp_path: Path, capsys: Captured
) -> None:
    folder, out = str(written("prid2011")), tmp_path / "set.arrow"
    assert main(["pack", "prid2011", folder, "--out", str(out)]) == 0
    assert main(["pack", "prid2011", folder, "--out", str(out)]) == 0
    content = {"notes.txt": b"important", "empty": b"", "broken.arrow": out.read_bytes()[:5000]}[name]
    (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    assert main(["pack", "prid2011", folder, "--out", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith("exists and is not a pack; name another file\n")
    assert (tmp_path / name).read_bytes() == content


def test_ctrl_c_while_a_set_is_generated_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupt(root: Path, cast: object) -> None:
        (root / "multi_shot").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(layouts.LAYOUTS, "prid2011", interrupt)
    assert main(["generate", "prid2011", str(tmp_path / "set")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_on_a_full_disk_is_one_line(written: Unpacked, unbuffered: str) -> None:
    command = [sys.executable, "-m", "trainables.data", "inspect", "prid2011", str(written("prid2011"))]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith("error: the output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_inspect_sheet_draws_every_identity(written: Unpacked, tmp_path: Path) -> None:
    path = tmp_path / "sheets" / "walkers.png"
    assert main(["inspect", "prid2011", str(written("prid2011")), "--sheet", str(path)]) == 0
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        # Six identities, 128 rows each, three frames of 64 columns in two cameras.
        assert sheet.height > PEOPLE * 128
        assert sheet.width > 2 * FRAMES * 64


def test_verify_reports_unreadable_frames(unpacked: Unpacked, capsys: Captured) -> None:
    folder = unpacked("prid2011")
    assert main(["verify", "prid2011", str(folder)]) == 0
    assert f"{PEOPLE * 2 * FRAMES} frames checked, 0 unreadable" in capsys.readouterr().out

    damaged = folder / "multi_shot/cam_b/person_0004/0002.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert main(["verify", "prid2011", str(folder)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(damaged) in errors[0]

    assert main(["verify", "prid2011", str(folder), "--skip-unreadable"]) == 0
    captured = capsys.readouterr()
    assert "36 frames checked, 1 unreadable" in captured.out
    assert f"unreadable: {damaged}" in captured.err


def test_pack_writes_frames_of_the_requested_size(
    written: Unpacked, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "walkers.arrow"
    command = ["pack", "ilids-vid", str(written("ilids-vid")), "--out", str(path)]
    assert main([*command, "--height", "32", "--width", "16"]) == 0
    packed = Pack.open(path)
    assert packed.digest in capsys.readouterr().out
    assert (packed.height, packed.width, len(packed.identities)) == (32, 16, PEOPLE * 2)


def test_generate_same_seed_gives_the_same_set(tmp_path: Path, capsys: Captured) -> None:
    for name in ("one", "two"):
        folder = str(tmp_path / name)
        assert (
            main(["generate", "prid2011", folder, "--identities", "4", "--frames", "2", "--seed", "5"]) == 0
        )
    first, second = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))] for name in ("one", "two")
    )
    assert first == second
    assert len(first) == 4 * 2 * 2
    assert main(["verify", "prid2011", str(tmp_path / "one")]) == 0
    assert main(["generate", "prid2011", str(tmp_path / "three"), "--identities", "many"]) == 2
    assert "error: --identities: " in capsys.readouterr().err
    assert main(["generate", "prid", str(tmp_path / "three")]) == 2
    assert "prid2011" in capsys.readouterr().err


def test_command_bad_input_is_one_line_without_traceback(written: Unpacked) -> None:
    command = [sys.executable, "-m", "trainables.data", "inspect", "mars", str(written("cuhk03"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    reading, error = done.stderr.splitlines()
    assert reading.startswith("reading ")
    assert error.startswith(f"error: {written('cuhk03')}: not layout mars: it looks like 'cuhk03'")


def test_long_work_logs_its_progress(
    written: Unpacked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.busy("counting sheep"):
        deadline = time.monotonic() + 60
        while "counting sheep: 0 s so far" not in caplog.messages:
            assert time.monotonic() < deadline
    assert main(["verify", "prid2011", str(written("prid2011"))]) == 0
    assert f"decoded 1 of {PEOPLE * 2} tracklets" in caplog.messages


def test_help_shows_examples_and_layouts(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "python -m trainables.data inspect prid2011" in out
    assert all(layout in out for layout in READERS)


def test_contact_sheet_of_pack_equals_that_of_the_set(written: Unpacked, tmp_path: Path) -> None:
    folder = written("market1501")
    assert main(["pack", "market1501", str(folder), "--out", str(tmp_path / "m.arrow"),
                 "--height", "128", "--width", "64"]) == 0  # fmt: skip
    data_set = read("market1501", folder, name=folder.name)
    one = contact_sheet(data_set, tmp_path / "set.png")
    two = contact_sheet(Pack.open(tmp_path / "m.arrow"), tmp_path / "pack.png")
    with Image.open(one) as from_set, Image.open(two) as from_pack:
        assert (np.asarray(from_set) == np.asarray(from_pack)).all()


def test_pack_into_a_folder_is_refused_before_decoding(
    written: Unpacked, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", str(tmp_path)):
        assert main(["pack", "images", str(written("images")), "--out", folder]) == 2
        assert f"error: {folder}: a folder; expected the name of a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_inspect_sheet_without_a_suffix_is_refused(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "images", "anywhere", "--sheet", "page"])
    assert stopped.value.code == 2
    assert "'page': expected a name that ends with .png or .jpg" in capsys.readouterr().err


def test_command_after_ctrl_c_says_so(
    written: Unpacked, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "read_checked", press_ctrl_c)
    assert main(["verify", "images", str(written("images"))]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_contact_sheet_that_cannot_be_drawn_is_refused(written: Unpacked, tmp_path: Path) -> None:
    data_set = read("images", written("images"), name="set")
    with pytest.raises(DataError, match=r"page\.xyz: cannot be written"):
        contact_sheet(data_set, tmp_path / "page.xyz")
    with pytest.raises(DataError, match="no identity to show"):
        contact_sheet(DataSet("bare", "image", (), ()), tmp_path / "page.png")
