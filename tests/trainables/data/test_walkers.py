"""The generated walkers: reproducible, and read back by the real readers from every layout."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from trainables.data.decoding import decode
from trainables.data.readers import read
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError, DataSet
from trainables.data.walkers import layouts as walkers
from trainables.data.walkers.cameras import HEIGHT, WIDTH, draw_camera, draw_tracklet
from trainables.data.walkers.drawing import draw_walker
from trainables.data.walkers.layouts import GenerateConfig

FORMS = [(layout, False) for layout in walkers.LAYOUTS] + [("cuhk03", True)]


def quiet(_: str) -> None:
    pass


def generate(layout: str, folder: Path, **fields: object) -> DataSet:
    config = GenerateConfig(**{"identities": 8, "frames": 4, **fields})
    walkers.write(layout, folder, config, quiet)
    return read(layout, folder, name=layout)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".mat"}


@pytest.mark.parametrize("layout", walkers.LAYOUTS)
def test_same_seed_gives_the_same_files_and_another_seed_none_of_them(layout: str, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        walkers.write(layout, tmp_path / name, GenerateConfig(identities=4, frames=2, seed=seed), quiet)
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    frames = {data for name, data in one.items() if not name.endswith((".json", ".txt"))}
    assert len(frames) > 8
    assert not frames & set(other.values())


def test_a_larger_set_keeps_the_people_of_the_smaller_one(tmp_path: Path) -> None:
    for name, identities in (("small", 4), ("large", 6)):
        walkers.write("prid2011", tmp_path / name, GenerateConfig(identities=identities, frames=2), quiet)
    small, large = (contents(tmp_path / name / "multi_shot") for name in ("small", "large"))
    assert small.items() <= large.items()


def test_mars_and_market1501_of_one_seed_are_the_same_people(tmp_path: Path) -> None:
    config = GenerateConfig(identities=16, frames=2, seed=4, difficulty=0)
    parts = {}
    for layout in ("mars", "market1501"):
        data_set = generate(layout, tmp_path / layout, identities=16, frames=2, seed=4, difficulty=0)
        [split] = data_set.splits
        people = walkers.people(layout, config)
        for names, part in zip(people, (split.train, split.query), strict=True):
            assert {data_set.tracklets[i].identity for i in part} == names
        parts[layout] = people
    assert parts["mars"][1] & parts["market1501"][0] and parts["mars"][1] & parts["market1501"][1]

    mars, market, other = (walkers._Cast(name, config).walker(3) for name in (*parts, "cuhk01"))
    assert repr(mars) == repr(market) != repr(other)


@pytest.mark.parametrize(("layout", "hdf5"), FORMS)
def test_reader_finds_what_extent_promises(layout: str, hdf5: bool, tmp_path: Path) -> None:
    config = GenerateConfig(identities=9, frames=4, hdf5=hdf5)
    walkers.write(layout, tmp_path / "set", config, quiet)
    data_set = read(layout, tmp_path / "set", name=layout)
    splits, train, test = walkers.extent(layout, config)
    assert len(data_set.splits) == splits
    for split in data_set.splits:
        trained, queried = (
            {data_set.tracklets[i].identity for i in part} for part in (split.train, split.query)
        )
        assert (len(trained), len(queried)) == (train, test)
        assert not trained & queried
    assert all(decode(tracklet.frames[0]).shape[2] == 3 for tracklet in data_set.tracklets)


def test_mars_has_several_tracklets_cameras_and_people_that_do_not_count(tmp_path: Path) -> None:
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


def test_cuhk03_folder_and_hdf5_hold_the_same_pictures(tmp_path: Path) -> None:
    forms = [generate("cuhk03", tmp_path / str(hdf5), hdf5=hdf5) for hdf5 in (False, True)]
    folder, hdf5 = (
        {decode(frame).tobytes() for tracklet in form.tracklets for frame in tracklet.frames}
        for form in forms
    )
    assert folder == hdf5
    assert len(folder) == 8 * 2 * 2


def test_half_written_set_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    config = GenerateConfig(identities=4, frames=2)
    leftover = tmp_path / "set.partial" / "multi_shot" / "cam_a" / "person_9999"
    leftover.mkdir(parents=True)
    walkers.write("prid2011", tmp_path / "set", config, quiet)
    assert not (tmp_path / "set.partial").exists()
    assert len(read("prid2011", tmp_path / "set", name="set").tracklets) == 8
    (tmp_path / "set" / walkers.MARKER).unlink()
    with pytest.raises(DataError, match=r"set: not empty and not complete"):
        walkers.write("prid2011", tmp_path / "set", config, quiet)


def test_complete_set_is_kept_and_another_config_refused(tmp_path: Path) -> None:
    config = GenerateConfig(identities=4, frames=2)
    said: list[str] = []
    walkers.write("prid2011", tmp_path / "set", config, said.append)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    walkers.write("prid2011", tmp_path / "set", config, said.append)
    assert "reused" in said[-1]
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    with pytest.raises(DataError, match="other generated walkers"):
        walkers.write("prid2011", tmp_path / "set", config.model_copy(update={"seed": 1}), quiet)


@pytest.mark.parametrize(
    ("layout", "fields", "line"),
    [
        ("images", {}, "layout 'images' cannot be generated; these can: cuhk01"),
        ("prid2011", {"cameras": 3}, "cameras: prid2011 has its own number"),
        ("mars", {"hdf5": True}, "hdf5: mars has no HDF5 form"),
        ("cuhk01", {"images": 3}, "images is 3: cuhk01 has 2 stills"),
    ],
)
def test_what_a_layout_cannot_follow_is_refused(
    layout: str, fields: dict[str, int], line: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=line):
        generate(layout, tmp_path / "set", **fields)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/set: cannot be written \(Not a directory\)"):
        generate("prid2011", tmp_path / "file" / "set")


def test_walkers_move_and_stay_themselves() -> None:
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


def test_difficulty_moves_the_colours_of_a_camera() -> None:
    walker = draw_walker(np.random.default_rng(0))

    def mean_colours(difficulty: float) -> np.ndarray:
        cameras = [draw_camera(np.random.default_rng(seed), 0.0, difficulty) for seed in range(6)]
        return np.array([
            draw_tracklet(walker, camera, 1, np.random.default_rng(5))[0, 30:100, 20:44].mean((0, 1))
            for camera in cameras
        ])  # fmt: skip

    assert mean_colours(2.0).std(0).mean() > 2 * mean_colours(0.0).std(0).mean()
