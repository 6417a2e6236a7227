"""Tests of the generated walkers: reproducible, and valid for the readers in every layout."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from trainables.data.decoding import decode
from trainables.data.readers import read
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet
from trainables.data.walkers import layouts
from trainables.data.walkers.cameras import HEIGHT, WIDTH, draw_camera, draw_tracklet
from trainables.data.walkers.drawing import draw_walker
from trainables.data.walkers.layouts import GenerateConfig
from trainables.errors import DataError

FORMS = [(layout, False) for layout in layouts.LAYOUTS] + [("cuhk03", True)]


def generate(layout: str, folder: Path, **fields: object) -> DataSet:
    config = GenerateConfig(**{"identities": 8, "frames": 4, **fields})
    layouts.write(layout, folder, config)
    return read(layout, folder, name=layout)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".mat"}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_write_same_seed_gives_equal_files_other_seed_none(layout: str, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        layouts.write(layout, tmp_path / name, GenerateConfig(identities=4, frames=2, seed=seed))
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    frames = {data for name, data in one.items() if not name.endswith((".json", ".txt"))}
    assert len(frames) > 8
    assert not frames & set(other.values())


def test_write_larger_set_keeps_identities_of_the_smaller(tmp_path: Path) -> None:
    for name, identities in (("small", 4), ("large", 6)):
        layouts.write("prid2011", tmp_path / name, GenerateConfig(identities=identities, frames=2))
    small, large = (contents(tmp_path / name / "multi_shot") for name in ("small", "large"))
    assert small.items() <= large.items()


def test_mars_and_market1501_of_one_seed_share_identities(tmp_path: Path) -> None:
    config = GenerateConfig(identities=16, frames=2, seed=4, difficulty=0)
    parts = {}
    for layout in ("mars", "market1501"):
        data_set = generate(layout, tmp_path / layout, identities=16, frames=2, seed=4, difficulty=0)
        [split] = data_set.splits
        halves = layouts.split_identities(layout, config)
        for names, part in zip(halves, (split.train, split.query), strict=True):
            assert {data_set.tracklets[i].identity for i in part} == names
        parts[layout] = halves
    assert parts["mars"][1] & parts["market1501"][0] and parts["mars"][1] & parts["market1501"][1]

    mars, market, other = (layouts._Cast(name, config).walker(3) for name in (*parts, "cuhk01"))
    assert repr(mars) == repr(market) != repr(other)


@pytest.mark.parametrize(("layout", "hdf5"), FORMS)
def test_extent_equals_what_the_reader_returns(layout: str, hdf5: bool, tmp_path: Path) -> None:
    config = GenerateConfig(identities=9, frames=4, hdf5=hdf5)
    layouts.write(layout, tmp_path / "set", config)
    data_set = read(layout, tmp_path / "set", name=layout)
    splits, train, test = layouts.extent(layout, config)
    assert len(data_set.splits) == splits
    for split in data_set.splits:
        train_identities, query_identities = (
            {data_set.tracklets[i].identity for i in part} for part in (split.train, split.query)
        )
        assert (len(train_identities), len(query_identities)) == (train, test)
        assert not train_identities & query_identities
    assert all(decode(tracklet.frames[0]).shape[2] == 3 for tracklet in data_set.tracklets)


def test_mars_has_several_cameras_junk_and_distractors(tmp_path: Path) -> None:
    data_set = generate("mars", tmp_path / "set", identities=12)
    labels = [(tracklet.identity, tracklet.camera) for tracklet in data_set.tracklets]
    identities = {identity for identity, _ in labels}
    assert {JUNK, DISTRACTOR} <= identities
    assert len(identities) == 14
    assert len({camera for _, camera in labels}) > 2
    assert any(labels.count(label) > 1 for label in labels if label[0] not in (JUNK, DISTRACTOR))
    lengths = {len(tracklet.frames) for tracklet in data_set.tracklets}
    assert lengths == {2, 3, 4}
    [split] = data_set.splits
    queries = [labels[i] for i in split.query]
    assert len(set(queries)) == len(queries)


def test_market1501_has_queries_distractors_and_junk(tmp_path: Path) -> None:
    data_set = generate("market1501", tmp_path / "set", identities=12, images=3)
    [split] = data_set.splits
    identity = [tracklet.identity for tracklet in data_set.tracklets]
    assert {identity[i] for i in split.query} <= {identity[i] for i in split.gallery}
    assert DISTRACTOR in {identity[i] for i in split.gallery}
    assert list((tmp_path / "set" / "bounding_box_test").glob("-1_c*.jpg"))
    assert not set(split.query) & set(split.gallery)


def test_cuhk03_folder_and_hdf5_have_equal_images(tmp_path: Path) -> None:
    forms = [generate("cuhk03", tmp_path / str(hdf5), hdf5=hdf5) for hdf5 in (False, True)]
    folder, hdf5 = (
        {decode(frame).tobytes() for tracklet in form.tracklets for frame in tracklet.frames}
        for form in forms
    )
    assert folder == hdf5
    assert len(folder) == 8 * 2 * 2


def test_write_after_incomplete_set_starts_again_or_refuses(tmp_path: Path) -> None:
    config = GenerateConfig(identities=4, frames=2)
    leftover = tmp_path / "set.partial" / "multi_shot" / "cam_a" / "person_9999"
    leftover.mkdir(parents=True)
    layouts.write("prid2011", tmp_path / "set", config)
    assert not (tmp_path / "set.partial").exists()
    assert len(read("prid2011", tmp_path / "set", name="set").tracklets) == 8
    (tmp_path / "set" / layouts.MARKER).unlink()
    with pytest.raises(DataError, match=r"set: not empty and without walkers.json"):
        layouts.write("prid2011", tmp_path / "set", config)


def test_write_again_reuses_the_set_or_refuses_other_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = GenerateConfig(identities=4, frames=2)
    layouts.write("prid2011", tmp_path / "set", config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    layouts.write("prid2011", tmp_path / "set", config)
    assert "reused" in caplog.messages[-1]
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    with pytest.raises(DataError, match="other generated walkers"):
        layouts.write("prid2011", tmp_path / "set", config.model_copy(update={"seed": 1}))


@pytest.mark.parametrize(
    ("layout", "fields", "line"),
    [
        ("images", {}, "layout 'images' cannot be generated; expected one of cuhk01"),
        ("prid2011", {"cameras": 3}, "cameras: prid2011 has a fixed number"),
        ("mars", {"hdf5": True}, "hdf5: mars has no HDF5 form"),
        ("cuhk01", {"images": 3}, "images is 3; cuhk01 has 2 images"),
    ],
)
def test_write_config_unfit_for_layout_is_refused(
    layout: str, fields: dict[str, int], line: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=line):
        generate(layout, tmp_path / "set", **fields)
    assert not list(tmp_path.iterdir())


def test_write_unwritable_folder_gives_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/set: cannot be written \(Not a directory\)"):
        generate("prid2011", tmp_path / "file" / "set")


def test_draw_tracklet_moves_and_keeps_the_identity() -> None:
    camera = draw_camera(np.random.default_rng(1), view=0.0, difficulty=0.0)
    tracklets = [
        draw_tracklet(draw_walker(np.random.default_rng([2, i])), camera, 8, np.random.default_rng([3, i]))
        for i in range(8)
    ]
    assert tracklets[0].shape == (8, HEIGHT, WIDTH, 3)
    for frames in tracklets:
        assert all((later != earlier).mean() > 0.1 for earlier, later in itertools.pairwise(frames))
    torso = np.array([frames[:, 35:60, 26:38].mean((1, 2)) for frames in tracklets])
    assert torso.std(axis=0).mean() > 4 * torso.std(axis=1).mean()


def test_draw_camera_difficulty_shifts_colours() -> None:
    walker = draw_walker(np.random.default_rng(0))

    def mean_colours(difficulty: float) -> np.ndarray:
        cameras = [draw_camera(np.random.default_rng(seed), 0.0, difficulty) for seed in range(6)]
        return np.array([
            draw_tracklet(walker, camera, 1, np.random.default_rng(5))[0, 30:100, 20:44].mean((0, 1))
            for camera in cameras
        ])  # fmt: skip

    assert mean_colours(2.0).std(0).mean() > 2 * mean_colours(0.0).std(0).mean()
