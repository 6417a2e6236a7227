"""Tests of the readers: rules for all layouts, one clear line per kind of damage, and real excerpts."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import ExifTags, Image
from pydantic import ValidationError

from tests.support.paths import EXAMPLES
from tests.support.tiny_sets import FRAMES, PEOPLE, Unpacked, save_image
from trainables.data.decoding import decode
from trainables.data.readers import READERS, detect_layout, read
from trainables.data.readers.generic import GenericOptions
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Frame
from trainables.errors import DataError
from trainables.testing import check_reader


def refused(layout: str, folder: Path, **options: object) -> str:
    """Return the error line of a set that is refused."""
    with pytest.raises(DataError) as caught:
        read(layout, folder, name="set", **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def names(data_set: DataSet) -> set[str]:
    return {tracklet.identity for tracklet in data_set.tracklets}


def outline(data_set: DataSet, folder: Path) -> list[tuple[str, str, list[tuple[Path, str | None]]]]:
    """Return identity, camera and frames of each tracklet, with paths in the folder of the set."""
    return [
        (
            tracklet.identity,
            str(tracklet.camera),
            [(frame.path.relative_to(folder), frame.key) for frame in tracklet.frames],
        )
        for tracklet in data_set.tracklets
    ]


@pytest.mark.parametrize("layout", READERS)
class TestEveryLayout:
    def test_read_written_set_conforms(self, layout: str, written: Unpacked) -> None:
        check_reader(layout, written(layout))
        data_set = read(layout, written(layout), name="set")
        assert len(names(data_set) - {JUNK, DISTRACTOR}) == PEOPLE
        for tracklet in data_set.tracklets:
            paths = [frame.path for frame in tracklet.frames]
            assert paths == sorted(paths)

    def test_read_twice_gives_equal_sets(self, layout: str, written: Unpacked) -> None:
        assert read(layout, written(layout), name="set") == read(layout, str(written(layout)), name="set")

    def test_detect_layout_names_the_layout(self, layout: str, written: Unpacked) -> None:
        assert detect_layout(written(layout)) == layout

    def test_read_missing_folder_suggests_the_nearest(self, layout: str, unpacked: Unpacked) -> None:
        folder = unpacked(layout)
        line = refused(layout, folder.with_name(folder.name + "x"))
        assert f"did you mean {folder}?" in line
        assert READERS[layout].expected in line

    def test_read_empty_folder_is_refused(self, layout: str, tmp_path: Path) -> None:
        assert f"{tmp_path}: the folder is empty; {READERS[layout].expected}" == refused(layout, tmp_path)

    def test_read_parent_folder_suggests_the_set(self, layout: str, unpacked: Unpacked) -> None:
        folder = unpacked(layout)
        assert f"did you mean {folder}?" in refused(layout, folder.parent)

    @pytest.mark.parametrize("other", READERS)
    def test_read_other_layout_is_named(self, layout: str, other: str, written: Unpacked) -> None:
        if other != layout:
            assert f"looks like {other!r}" in refused(layout, written(other))

    def test_read_unknown_option_suggests_the_nearest(self, layout: str, written: Unpacked) -> None:
        line = refused(layout, written(layout), sede=1)
        assert f"layout {layout}, option sede: no such option" in line
        assert ("did you mean 'seed'?" in line) == ("seed" in READERS[layout].Options.model_fields)

    def test_litter_of_other_programs_is_left_out(self, layout: str, unpacked: Unpacked) -> None:
        folder = unpacked(layout)
        before = read(layout, folder, name="set")
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0001.png", "._0001.jpg"):
                (place / name).write_bytes(b"litter")
        for name in ("._my_splits.json", ".splits.json"):
            (folder / name).write_bytes(b"litter")
        for name in ("@eaDir", ".ipynb_checkpoints"):
            (folder / name).mkdir()
            save_image(folder / name / "0001.jpg", 0)
        assert read(layout, folder, name="set") == before

    @pytest.mark.parametrize("name", ["Größe", "gro\u0308sse", "数据 set", "a (1) + b", "it's 100%"])
    def test_folder_may_have_any_name(self, layout: str, name: str, unpacked: Unpacked) -> None:
        folder = unpacked(layout)
        before = outline(read(layout, folder, name="set"), folder)
        renamed = folder.rename(folder.with_name(name))
        assert outline(read(layout, renamed, name="set"), renamed) == before

    def test_suffixes_in_upper_case_are_read(self, layout: str, unpacked: Unpacked) -> None:
        folder = unpacked(layout)
        before = outline(read(layout, folder, name="set"), folder)
        for path in list(folder.rglob("*")):
            if path.suffix in (".jpg", ".png"):
                path.rename(path.with_suffix(path.suffix.upper()))
        if layout == "mars":  # its lists name every file
            line = refused(layout, folder)
            assert "missing 0002/0002C1T0001F001.jpg" in line
            assert "(there is 0002C1T0001F001.JPG: rename it)" in line
            return
        after = outline(read(layout, folder, name="set"), folder)
        assert [each[:2] for each in after] == [each[:2] for each in before]
        assert [len(each[2]) for each in after] == [len(each[2]) for each in before]

    def test_frames_of_other_depth_and_orientation_are_read(self, layout: str, unpacked: Unpacked) -> None:
        path = read(layout, unpacked(layout), name="set").tracklets[0].frames[0].path
        if path.suffix == ".png":
            Image.fromarray(np.full((6, 4), 0x80FF, np.uint16)).save(path)
            assert (decode(Frame(path)) == np.full((6, 4, 3), 0x80)).all()
        elif path.suffix == ".jpg":
            turned = Image.new("RGB", (6, 4))
            turned.getexif()[ExifTags.Base.Orientation] = 6
            turned.save(path, exif=turned.getexif())
            assert decode(Frame(path)).shape == (6, 4, 3)
        else:
            assert path.suffix in (".mat", ".hdf5", ".h5")  # arrays, which have neither


def test_read_unknown_layout_suggests_the_nearest(tmp_path: Path) -> None:
    line = refused("mras", tmp_path)
    assert "did you mean 'mars'?" in line
    assert all(layout in line for layout in READERS)


def remove(*paths: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in paths:
            for match in list(folder.glob(path)):
                shutil.rmtree(match) if match.is_dir() else match.unlink()

    return damage


def deeper(path: str) -> Callable[[Path], None]:
    """Move each image into a folder of its identity, as some tools do."""

    def damage(folder: Path) -> None:
        for file in list((folder / path).iterdir()):
            place = folder / path / file.name.partition("_")[0]
            place.mkdir(exist_ok=True)
            file.rename(place / file.name)

    return damage


def empty(path: str) -> Callable[[Path], None]:
    return remove(f"{path}/*")


def one_more(variable: str, path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = scipy.io.loadmat(folder / path)[variable].astype(float)
        content.flat[np.argmax(content)] += 10_000
        scipy.io.savemat(folder / path, {variable: content})

    return damage


def cut_short(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole[: len(whole) // 2])

    return damage


def renamed(pattern: str, before: str, after: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.rename(path.with_name(path.name.replace(before, after)))

    return damage


def into_itself(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder / "outer")
        (folder / name).mkdir()
        (folder / "outer").rename(folder / name / name)

    return damage


ILIDS = "i-LIDS-VID/sequences"
ILIDS_SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
DAMAGE: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("prid2011", "no cam_b", remove("multi_shot/cam_b"), r"cam_b: no such folder; expected multi_shot"),
    ("prid2011", "no people", empty("multi_shot/cam_a"), r"cam_a: holds no folders"),
    ("prid2011", "one camera", remove("multi_shot/cam_b/person_000[1-4]"),
     r"person_0001, person_0002, person_0003, \.\.\. \(4\) are only in cam_a"),
    ("prid2011", "nowhere", remove("multi_shot/cam_?/person_0003"),
     r"person_0003 are in neither camera"),
    ("prid2011", "no frames", empty("multi_shot/cam_a/person_0002"), r"cam_a/person_0002: holds no images"),
    ("prid2011", "broken list", cut_short("splits_prid2011.json"),
     r"splits_prid2011.json, .*expected a list"),
    ("ilids-vid", "no cam2", remove(f"{ILIDS}/cam2"), r"cam2: no such folder"),
    ("ilids-vid", "one camera", remove(f"{ILIDS}/cam2/person002"), r"person002 in one camera only"),
    ("ilids-vid", "no splits", remove(ILIDS_SPLITS), r"train_test_splits_ilidsvid.mat: no such file"),
    ("ilids-vid", "gap", remove(f"{ILIDS}/cam?/person002"), r"ls_set ranges from 1 to 6; expected 1 to 5"),
    ("ilids-vid", "no frames", empty(f"{ILIDS}/cam1/person002"), r"cam1/person002: holds no images"),
    ("ilids-vid", "broken splits", cut_short(ILIDS_SPLITS), r"not a readable MATLAB file"),
    ("mars", "no info", remove("info"), r"no folder info; expected bbox_train"),
    ("mars", "no test boxes", remove("bbox_test"), r"no folder bbox_test"),
    ("mars", "folder in itself", into_itself("bbox_train"), r"\(are they in .*/bbox_train/bbox_train\?\)"),
    ("mars", "no names", remove("info/test_name.txt"), r"test_name.txt: no such file"),
    ("mars", "identity gone", remove("bbox_test/0000"),
     r"bbox_test: missing 0000/0000C\dT\d{4}F\d{3}.jpg"),
    ("mars", "track beyond names", one_more("track_test_info", "info/tracks_test_info.mat"),
     r"tracks_test_info.mat, track \d+: frames \d+ to \d+; expected within 1 to \d+"),
    ("mars", "query beyond tracks", one_more("query_IDX", "info/query_IDX.mat"),
     r"query_IDX ranges from \d+ to"),
    ("market1501", "no query", remove("query"), r"query: no such folder"),
    ("market1501", "trained and tested", renamed("bounding_box_train/0002_*", "0002", "0004"),
     r"market1501, split 0: 0004 in the train part and in query or gallery; expected different"),
    ("market1501", "folders of identities", deeper("bounding_box_train"),
     r"bounding_box_train: holds no images, but folders such as 0002; move their images up"),
    ("market1501", "no gallery", empty("bounding_box_test"), r"bounding_box_test: holds no images"),
    ("cuhk03", "no images", empty("images_labeled"), r"images_labeled: holds no images"),
    ("cuhk01", "no images", empty("campus"), r"campus: holds no images"),
    ("cuhk01", "one view", remove("campus/000300[34].png"), r"0003 in one view only"),
    ("images", "no people", empty("images"), r"images: holds no folders; expected images/<identity>"),
    ("images", "no images", empty("images/p1/front"), r"p1/front: holds no images"),
    ("sequences", "no camera", empty("sequences/p1"), r"sequences/p1: holds no folders"),
    ("sequences", "no frames", empty("sequences/p1/front/t0"), r"p1/front/t0: holds no images"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "damage", "line"), [pytest.param(d[0], d[2], d[3], id=f"{d[0]}: {d[1]}") for d in DAMAGE]
)
def test_read_damaged_set_names_the_damage(
    layout: str, damage: Callable[[Path], None], line: str, unpacked: Unpacked
) -> None:
    folder = unpacked(layout)
    damage(folder)
    message = refused(layout, folder)
    assert message.startswith(str(folder))
    assert re.search(line, message), message


class TestPrid2011:
    def write(self, folder: Path, cameras: dict[str, dict[int, int]]) -> None:
        for camera, people in cameras.items():
            for person, frames in people.items():
                for frame in range(frames):
                    save_image(folder / f"multi_shot/{camera}/person_{person:04}/{frame + 1:04}.png", person)

    def test_read_without_split_list_pairs_the_first_200(self, tmp_path: Path) -> None:
        both = {1: 2, 2: 2, 3: 2, 200: 2, 201: 2}
        self.write(tmp_path, {"cam_a": both, "cam_b": both | {300: 2}})
        data_set = read("prid2011", tmp_path, name="set")
        assert names(data_set) == {"person_0001", "person_0002", "person_0003", "person_0200"}
        assert len(data_set.splits) == 10
        assert any("10 random" in note for note in data_set.notes)
        other = read("prid2011", tmp_path, name="set", seed=1)
        assert data_set.splits != other.splits

    def test_read_with_split_list_pairs_listed_identities(self, tmp_path: Path) -> None:
        people = {1: 2, 2: 2, 387: 2}
        self.write(tmp_path, {"cam_a": people, "cam_b": people})
        splits = [{"train": ["person_0002"], "test": ["person_0387", "person_0001"]}]
        (tmp_path / "my_splits.json").write_text(json.dumps(splits))
        data_set = read("prid2011", tmp_path, name="set")
        (split,) = data_set.splits
        labels = [(t.identity[-3:], t.camera) for t in data_set.tracklets]
        assert [labels[i] for i in split.train] == [("002", "a"), ("002", "b")]
        assert [labels[i] for i in split.query] == [("001", "a"), ("387", "a")]
        assert [labels[i] for i in split.gallery] == [("001", "b"), ("387", "b")]

    def test_read_minimum_frames_leaves_out_short_tracklets(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"cam_a": {1: 28, 2: 27, 3: 28}, "cam_b": {1: 28, 2: 28, 3: 30}})
        data_set = read("prid2011", tmp_path, name="set", minimum_frames=28)
        assert names(data_set) == {"person_0001", "person_0003"}
        assert "lower it to 28 or less" in refused("prid2011", tmp_path, minimum_frames=29)
        assert "option minimum_frames" in refused("prid2011", tmp_path, minimum_frames=0)

    def test_read_identity_in_both_parts_is_refused(self, unpacked: Unpacked) -> None:
        folder = unpacked("prid2011")
        both = [{"train": ["person_0001"], "test": ["person_0001", "person_0002"]}]
        (folder / "splits_prid2011.json").write_text(json.dumps(both))
        assert "person_0001 in both train and test" in refused("prid2011", folder)


def test_ilids_vid_positions_select_identities(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2"):
        for person in ("person001", "person002", "person005", "person319"):
            save_image(tmp_path / ILIDS / camera / person / f"{camera}_{person}_00317.png")
    (tmp_path / "train-test people splits").mkdir()
    scipy.io.savemat(tmp_path / ILIDS_SPLITS, {"ls_set": np.array([[4, 1, 3, 2]], np.uint16)})
    data_set = read("ilids-vid", tmp_path, name="set")
    (split,) = data_set.splits
    assert {data_set.tracklets[i].identity for i in split.query} == {"person319", "person001"}
    assert {data_set.tracklets[i].identity for i in split.train} == {"person005", "person002"}
    assert {data_set.tracklets[i].camera for i in split.gallery} == {"2"}


def test_mars_rows_become_tracklets(tmp_path: Path) -> None:
    file_names = {
        "train": ["0001C1T0001F001.jpg", "0001C1T0001F002.jpg", "0001C2T0001F001.jpg"],
        "test": ["00-1C1T0001F001.jpg", "0000C1T0001F001.jpg", "0002C1T0001F001.jpg", "0002C2T0001F001.jpg"],
    }
    rows = {
        "train": [[1, 2, 1, 1], [3, 3, 1, 2]],
        "test": [[1, 1, -1, 1], [2, 2, 0, 1], [3, 3, 2, 1], [4, 4, 2, 2]],
    }
    (tmp_path / "info").mkdir()
    for part, files in file_names.items():
        for name in files:
            save_image(tmp_path / f"bbox_{part}" / name[:4] / name)
        (tmp_path / f"info/{part}_name.txt").write_text("\n".join(files))
        content = {f"track_{part}_info": np.array(rows[part], float)}
        scipy.io.savemat(tmp_path / f"info/tracks_{part}_info.mat", content)
    scipy.io.savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.array([[3]], float)})

    data_set = read("mars", tmp_path, name="set")
    assert [(t.identity, t.camera, len(t.frames)) for t in data_set.tracklets] == [
        ("0001", "1", 2),
        ("0001", "2", 1),
        (JUNK, "1", 1),
        (DISTRACTOR, "1", 1),
        ("0002", "1", 1),
        ("0002", "2", 1),
    ]
    (split,) = data_set.splits
    assert (split.train, split.query, split.gallery) == ((0, 1), (4,), (2, 3, 4, 5))
    assert data_set.protocol == "mars" and not any("no match" in note for note in data_set.notes)

    scipy.io.savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.array([[3, 2]], float)})
    note = "split 0: 1 of 2 queries have no match in another camera, and do not count"
    assert read("mars", tmp_path, name="set").notes[-1] == note

    rows["train"][1][3] = 3
    scipy.io.savemat(tmp_path / "info/tracks_train_info.mat", {"track_train_info": np.array(rows["train"])})
    assert "track 2: identity 1, camera 3, but frame 0001C2T0001F001.jpg" in refused("mars", tmp_path)


class TestCuhk03:
    def write(self, folder: Path, testsets: list[list[tuple[int, int]]]) -> Path:
        """Write pairs of 3 and 1 identities; identity 2 of pair 1 has one image per view, others two."""
        path = folder / "cuhk-03.mat"
        with h5py.File(path, "w") as file:
            group = file.create_group("#refs#")

            def put(data: object, dtype: object = None) -> h5py.Reference:
                return group.create_dataset(f"r{len(group)}", data=data, dtype=dtype).ref

            empty_cell = put(np.zeros(2, np.uint64))
            pairs = []
            for count in (3, 1):
                cells = np.full((10, count), empty_cell, object)
                for identity in range(count):
                    for image in (0, 5) if identity == 1 else (0, 1, 5, 9):
                        # MATLAB [height 6, width 4, 3], so [3, 4, 6] here; the top row is brighter.
                        pixels = np.full((3, 4, 6), 10 * identity + image, np.uint8)
                        pixels[:, :, 0] = 200
                        cells[image, identity] = put(pixels)
                pairs.append(put(cells, h5py.ref_dtype))
            for name in ("labeled", "detected"):
                file.create_dataset(name, data=np.array([pairs], object), dtype=h5py.ref_dtype)
            sets = [put(np.array(rows, float).T) for rows in testsets]
            file.create_dataset("testsets", data=np.array([sets], object), dtype=h5py.ref_dtype)
        return path

    def test_read_archive_finds_images_and_testsets(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, [[(1, 2), (2, 1)], [(1, 1), (1, 3)]])
        data_set = read("cuhk03", tmp_path, name="set", boxes="detected")
        assert len(data_set.tracklets) == 4 + 2 + 4 + 4
        assert names(data_set) == {"1_001", "1_002", "1_003", "2_001"}
        assert data_set.protocol == "single-gallery-shot"
        first, second = data_set.splits
        queries = [data_set.tracklets[i] for i in first.query]
        assert {(t.identity, t.camera) for t in queries} == {("1_002", "1-1"), ("2_001", "2-1")}
        assert {data_set.tracklets[i].camera for i in second.gallery} == {"1-2"}
        last = next(t for t in data_set.tracklets if t.frames[0].key == "detected{1}{3,10}")
        image = decode(last.frames[0])
        assert (last.identity, last.camera, image.shape) == ("1_003", "1-2", (6, 4, 3))
        assert (image[0] == 200).all()
        assert (image[1:] == 29).all()
        with pytest.raises(DataError, match=re.escape(f"{path}, labeled{{1}}{{9,1}}: cannot be read")):
            decode(Frame(path, "labeled{1}{9,1}"))
        with pytest.raises(DataError, match=re.escape("labeled{1}{2,2}: uint64 [2]; expected")):
            decode(Frame(path, "labeled{1}{2,2}"))

    def test_read_testset_without_images_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path, [[(1, 2)], [(2, 2), (1, 1)]])
        assert "testsets{2}: identity 2_002 has no image" in refused("cuhk03", tmp_path)

    def test_read_truncated_archive_is_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, [[(1, 2)]])
        path.write_bytes(path.read_bytes()[:4000])
        assert "not a readable HDF5 file" in refused("cuhk03", tmp_path)

    @pytest.mark.parametrize("form", ["archive", "folder"])
    def test_read_new_protocol_gives_its_split(self, form: str, tmp_path: Path) -> None:
        files = ["1_001_1_01", "1_001_2_06", "1_002_1_01", "1_002_2_06", "1_003_1_01"]
        if form == "archive":
            self.write(tmp_path, [[(1, 2)]])
        else:
            for file in files:
                save_image(tmp_path / "images_labeled" / f"{file}.png")
        content = {
            "filelist": np.array([[f"{file}.png"] for file in files], object),
            "train_idx": np.array([[1], [2], [5]]),
            "query_idx": np.array([[3]]),
            "gallery_idx": np.array([[4]]),
        }
        scipy.io.savemat(tmp_path / "cuhk03_new_protocol_config_labeled.mat", content)
        data_set = read("cuhk03", tmp_path, name="set", protocol="new")
        assert data_set.protocol == "whole-gallery"
        (split,) = data_set.splits
        labels = [(t.identity, t.camera) for t in data_set.tracklets]
        assert [labels[i] for i in split.train] == [("1_001", "1-1"), ("1_001", "1-2"), ("1_003", "1-1")]
        assert [labels[i] for i in (*split.query, *split.gallery)] == [("1_002", "1-1"), ("1_002", "1-2")]

    def test_read_folder_form_accepts_either_folder(self, written: Unpacked) -> None:
        folder = written("cuhk03")
        whole = read("cuhk03", folder, name="set")
        assert read("cuhk03", folder / "images_labeled", name="set") == whole
        assert "set option boxes: labeled" in refused("cuhk03", folder, boxes="detected")
        assert "'labeled' or 'detected'" in refused("cuhk03", folder, boxes="drawn")
        (split,) = whole.splits
        assert (len(split.train), split.query, split.gallery) == (len(whole.tracklets), (), ())


def test_market1501_gallery_has_junk_and_distractors(written: Unpacked) -> None:
    data_set = read("market1501", written("market1501"), name="set")
    (split,) = data_set.splits
    gallery = {data_set.tracklets[i].identity for i in split.gallery}
    assert {JUNK, DISTRACTOR} < gallery


def test_market1501_invalid_image_name_is_refused(unpacked: Unpacked) -> None:
    folder = unpacked("market1501")
    save_image(folder / "query" / "holiday.jpg")
    assert "holiday.jpg: not a valid image name" in refused("market1501", folder)


def test_cuhk01_splits_are_random_halves(written: Unpacked) -> None:
    data_set = read("cuhk01", written("cuhk01"), name="set", seed=3)
    assert len({split.train for split in data_set.splits}) > 1
    for split in data_set.splits:
        assert (len(split.train), len(split.query), len(split.gallery)) == (12, 6, 6)
        assert {data_set.tracklets[i].frames[0].path.stem[-1] for i in split.query} == {"1", "2"}


@pytest.mark.parametrize("layout", ["images", "sequences"])
def test_generic_set_random_splits_halve_identities(layout: str, unpacked: Unpacked) -> None:
    folder = unpacked(layout)
    data_set = read(layout, folder, name="set")
    assert len(data_set.tracklets) == PEOPLE * 2 * 2
    assert {len(t.frames) for t in data_set.tracklets} == {1 if layout == "images" else FRAMES}
    assert data_set.splits[0].query == ()
    halves = read(layout, folder, name="set", random_splits=3)
    assert [len(split.query) for split in halves.splits] == [PEOPLE] * 3
    assert {halves.tracklets[i].camera for i in halves.splits[0].query} == {"front"}
    remove(f"{layout}/*/side")(folder)
    line = refused(layout, folder, random_splits=1)
    assert (
        "in one camera only" if layout == "sequences" else "0 identities are in at least two cameras"
    ) in line


@pytest.mark.parametrize("layout", ["images", "sequences"])
def test_generic_set_follows_its_split_list(layout: str, unpacked: Unpacked) -> None:
    folder = unpacked(layout)
    remove(f"{layout}/p3/side")(folder)  # a distractor, in one camera
    (folder / "official.json").write_text(
        json.dumps(
            [{"train": ["p1"], "query": ["p2/front"], "gallery": ["p2/side", "p3"]}, {"train": ["p2/side/"]}]
        )
    )
    data_set = read(layout, folder, name="set", splits="official.json")
    assert data_set.notes == ()
    first, second = data_set.splits
    sides = {
        part: {(t.identity, t.camera) for t in (data_set.tracklets[i] for i in getattr(first, part))}
        for part in ("train", "query", "gallery")
    }
    assert sides == {
        "train": {("p1", "front"), ("p1", "side")},
        "query": {("p2", "front")},
        "gallery": {("p2", "side"), ("p3", "front")},
    }
    assert {(t.identity, t.camera) for t in (data_set.tracklets[i] for i in second.train)} == {("p2", "side")}
    assert second.query == ()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"official.json: No such file or directory; expected \[{"),
        ("{", r"official.json, top level: Invalid JSON"),
        ("[]", r"official.json, top level: List should have at least 1 item"),
        ('[{"trian": []}]', r"official.json, 0.trian: Extra inputs are not permitted"),
        (
            '[{"train": ["p1/frnt"]}]',
            r"split 0, train: .*sequences has no 'p1/frnt'; did you mean 'p1/front'\?",
        ),
        ('[{"train": ["p1"], "query": ["p2/front"]}]', r"split 0: a part is empty"),
        ("[{}]", r"split 0: a part is empty"),
        (
            '[{"train": ["p1"], "query": ["p1/front"], "gallery": ["p2"]}]',
            r"split 0: p1 in the train part and in query or gallery",
        ),
    ],
)
def test_generic_split_list_that_is_wrong_is_refused(
    content: str | None, line: str, unpacked: Unpacked
) -> None:
    folder = unpacked("sequences")
    if content is not None:
        (folder / "official.json").write_text(content)
    assert re.search(line, refused("sequences", folder, splits="official.json"))


def test_queries_without_a_match_are_counted(unpacked: Unpacked) -> None:
    folder = unpacked("sequences")
    split = {"train": ["p1"], "query": ["p2/front", "p3"], "gallery": ["p2/side", "p4"]}
    (folder / "official.json").write_text(json.dumps([split]))
    data_set = read("sequences", folder, name="set", splits="official.json")
    queries = len(data_set.splits[0].query)
    note = f"split 0: 4 of {queries} queries have no match in another camera, and do not count"
    assert data_set.notes == (note,)


def test_name_in_another_unicode_form_is_told(unpacked: Unpacked) -> None:
    folder = unpacked("sequences")
    (folder / "sequences/p1").rename(folder / "sequences/zoe\u0308")  # as a Mac writes zo\u00eb
    (folder / "official.json").write_text(json.dumps([{"train": ["zo\u00eb"]}]))
    line = refused("sequences", folder, splits="official.json")
    assert r"did you mean 'zoe\u0308', in that Unicode form, not 'zo\xeb'?" in line


def test_generic_set_with_two_kinds_of_splits_is_refused() -> None:
    with pytest.raises(ValidationError, match="splits and random_splits are given; keep one of them"):
        GenericOptions(splits="official.json", random_splits=2)


def test_example_prepares_dukemtmc_videoreid(tmp_path: Path) -> None:
    """Folders and names as in the published set; identity 2 is a query, and 3 is in the gallery only."""
    tracklets = [("train", 1, 1), ("train", 1, 2), ("query", 2, 1), ("gallery", 2, 3), ("gallery", 3, 3)]
    for number, (part, identity, camera) in enumerate(tracklets):
        for frame in range(2):
            name = f"{identity:04}_C{camera}_F{frame:04}_X{number:05}.jpg"
            save_image(tmp_path / "DukeMTMC-VideoReID" / part / f"{identity:04}" / f"{number:04}" / name)
    folders = [str(tmp_path / "DukeMTMC-VideoReID"), str(tmp_path / "duke")]
    for _ in range(2):
        subprocess.run([sys.executable, str(EXAMPLES / "my_duke.py"), *folders], check=True)
    data_set = read("sequences", tmp_path / "duke", name="duke", splits="official.json")
    (split,) = data_set.splits
    parts = (split.train, split.query, split.gallery)
    assert [
        [(t.identity, t.camera, len(t.frames)) for t in map(data_set.tracklets.__getitem__, p)] for p in parts
    ] == [
        [("0001", "c1", 2), ("0001", "c2", 2)],
        [("0002", "c1", 2)],
        [("0002", "c3", 2), ("0003", "c3", 2)],
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decode_damaged_file_is_named(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    assert decode(Frame(path)).shape == (32, 16, 3)
    if suffix == ".png":
        assert (decode(Frame(path)) == pixels).all()
    tail = len(whole) // 2
    for damaged in (whole[:tail], whole[:tail] + bytes(len(whole) - tail), b"", b"no image at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(str(path))):
            decode(Frame(path))
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        decode(Frame(path))


def test_decode_grey_and_palette_images_gives_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (4, 8)).save(path)
        assert decode(Frame(path)).shape == (8, 4, 3)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("layout", "folder", "identities", "tracklets", "frames", "split"),
    [
        ("prid2011", "prid_2011", 194, 388, 3104, (194, 97, 97)),
        ("mars", "MARS", 60, 485, 3875, (243, 72, 242)),
        ("cuhk01", "CUHK01", 485, 1940, 1940, (968, 486, 486)),
        ("cuhk03", "CUHK03", 420, 4080, 4080, (4080, 0, 0)),
    ],
)
def test_read_real_excerpt_has_expected_counts(
    layout: str,
    folder: str,
    identities: int,
    tracklets: int,
    frames: int,
    split: tuple[int, int, int],
    real_data: Path,
) -> None:
    data_set = read(layout, real_data / folder, name="real")
    assert len(names(data_set) - {JUNK, DISTRACTOR}) == identities
    assert len(data_set.tracklets) == tracklets
    assert sum(len(tracklet.frames) for tracklet in data_set.tracklets) == frames
    for official in data_set.splits:
        assert (len(official.train), len(official.query), len(official.gallery)) == split
    assert any("published" in note for note in data_set.notes)
    assert decode(data_set.tracklets[-1].frames[-1]).ndim == 3


@pytest.mark.parametrize("layout", ["prid2011", "ilids-vid", "sequences"])
def test_frames_are_in_the_order_of_their_numbers(layout: str, unpacked: Unpacked) -> None:
    folder = unpacked(layout)
    first = read(layout, folder, name="set").tracklets[0].frames[0].path
    for file in first.parent.iterdir():
        file.unlink()
    for number in range(1, 13):
        save_image(first.parent / f"{number}.png", number)
    (first.parent / "Thumbs.db").touch()
    tracklets = read(layout, folder, name="set").tracklets
    frames = next(each.frames for each in tracklets if each.frames[0].path.parent == first.parent)
    assert [frame.path.name for frame in frames] == [f"{number}.png" for number in range(1, 13)]


@pytest.mark.parametrize("suffix", ["webp", "tif", "tiff", "ppm", "jfif", "jpe", "JPG", "bmp", "png"])
def test_image_formats_of_own_sets_are_read(suffix: str, tmp_path: Path) -> None:
    pixels = np.full((8, 4, 3), 90, np.uint8)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "ppm": "PPM"}.get(suffix)
    for person in ("a", "b"):
        for camera in ("1", "2"):
            path = tmp_path / "images" / person / camera / f"1.{suffix}"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path, kind)
    data_set = read("images", tmp_path, name="own")
    assert len(data_set.tracklets) == 4
    np.testing.assert_allclose(decode(data_set.tracklets[0].frames[0]), pixels, atol=2)


@pytest.mark.parametrize("name", ["2.heic", "2.gif", "2.AVIF", "walk.mp4"])
def test_file_of_another_format_among_images_is_named(name: str, unpacked: Unpacked) -> None:
    folder = unpacked("images")
    image = read("images", folder, name="set").tracklets[0].frames[0].path
    (image.parent / name).touch()
    assert f"{image.parent / name}: this format is not read, only .bmp, " in refused("images", folder)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (0x80FF, 0x80), (65535, 255)])
def test_image_of_16_bits_is_scaled(value: int, expected: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 6), value, np.uint16))
    for name in ("grey.png", "grey.pgm", "grey.tif"):
        image.save(tmp_path / name)
        pixels = decode(Frame(tmp_path / name))
        assert pixels.shape == (4, 6, 3) and (pixels == expected).all(), name


def test_image_of_32_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 6), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"depth\.tif: F: pixels of 32 bits, whose range is not known"):
        decode(Frame(tmp_path / "depth.tif"))


def exif(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


TURN = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
ODD = struct.pack("<HHI", 0x128, 2, 2) + b"2\0\0\0"  # a text where a number belongs


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("record", "shape"),
    [
        (exif(TURN), (6, 4, 3)),
        (exif(TURN, ODD), (6, 4, 3)),
        (exif(ODD), (4, 6, 3)),
        (exif(struct.pack("<HHI", 0x112, 2, 2) + b"x\0\0\0"), (4, 6, 3)),
        (exif(TURN)[:18], (4, 6, 3)),
        (b"Exif\0\0nonsense", (4, 6, 3)),
    ],
    ids=["turned", "turned, odd entry", "odd entry", "odd orientation", "cut short", "nonsense"],
)
def test_odd_exif_record_does_not_hide_the_picture(
    record: bytes, shape: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new("RGB", (6, 4), (200, 30, 30)).save(tmp_path / "photo.jpg", exif=record)
    pixels = decode(Frame(tmp_path / "photo.jpg"))
    assert pixels.shape == shape and abs(pixels.mean(axis=(0, 1)) - (200, 30, 30)).max() < 5


def test_name_that_is_not_utf8_is_refused(unpacked: Unpacked) -> None:
    folder = unpacked("images")
    identity = folder / "images" / "p1"
    identity.rename(os.fsdecode(os.fsencode(identity) + b"\xe9"))
    assert "p1\\xe9/front/0.jpg: the name is not UTF-8; rename it" in refused("images", folder)


@pytest.mark.parametrize(
    ("layout", "file"), [("prid2011", "splits_prid2011.json"), ("mars", "info/test_name.txt")]
)
def test_list_with_a_byte_order_mark_is_read(layout: str, file: str, unpacked: Unpacked) -> None:
    folder = unpacked(layout)
    before = read(layout, folder, name="set")
    (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
    assert read(layout, folder, name="set") == before


def test_junk_and_distractors_of_market1501_do_not_train(unpacked: Unpacked) -> None:
    folder = unpacked("market1501")
    before = read("market1501", folder, name="set")
    for name in ("-1_c1s1_000401_03.jpg", "0000_c2s1_000401_03.jpg"):
        save_image(folder / "bounding_box_train" / name, 0)
    assert read("market1501", folder, name="set") == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photograph_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 8, 3), np.uint8)
    upright[:8, :4] = 200
    undo = {
        1: lambda image: image,
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, 1),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: lambda image: np.rot90(image, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(decode(Frame(tmp_path / "photo.png")), upright)
