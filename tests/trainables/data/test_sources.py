"""From the data part of a config to packs: built once, checked before, split without leaks."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from pydantic import ValidationError

from tests.support.tiny_sets import save_image
from trainables.data.packing import Pack
from trainables.data.sources import (
    DataConfig,
    cache_folder,
    check,
    held_back,
    resolve,
    split_of,
    training_part,
)
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError
from trainables.data.walkers import layouts as walkers

SETS = {
    "walkers": {"layout": "prid2011", "generate": {"identities": 8, "frames": 2}},
    "walkers-stills": {"layout": "cuhk03", "generate": {"identities": 4, "seed": 1}},
    "walkers-b": {"layout": "mars", "generate": {"identities": 16, "frames": 2, "seed": 2}},
}


def config(tmp_path: Path, **fields: Any) -> DataConfig:
    given = {
        "sets": SETS,
        "sequences": "walkers",
        "images": ["walkers-stills"],
        "targets": ["walkers", "walkers-b"],
        "height": 32,
        "width": 16,
        "cache": tmp_path / "cache",
    }
    return DataConfig.model_validate({**given, **fields})


def with_set(tmp_path: Path, **fields: Any) -> DataConfig:
    return config(tmp_path, sets={"real": fields}, sequences="real", images=[], targets=["real"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the layout of PRID 2011, as a user would have it."""
    chosen = walkers.GenerateConfig(identities=8, frames=2)
    walkers.write("prid2011", tmp_path / "prid", chosen, lambda _: None)
    return tmp_path / "prid"


def test_every_set_of_a_config_resolves(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    check(chosen)
    assert not (tmp_path / "cache").exists()
    for name, kind in (("walkers", "sequence"), ("walkers-stills", "image"), ("walkers-b", "sequence")):
        pack = resolve(chosen, name, lambda _: None)
        assert (pack.name, pack.kind, pack.height, pack.width) == (name, kind, 32, 16)


def test_second_call_reuses_whatever_the_set_is_called(tmp_path: Path) -> None:
    said: list[str] = []
    first = resolve(config(tmp_path), "walkers", said.append)
    assert "packed 16 tracklets of 8 identities, 32 frames" in said[-1]
    built = first.path.stat().st_mtime_ns
    renamed = config(tmp_path, sets={"same": SETS["walkers"]}, sequences="same", images=[], targets=[])
    again = resolve(renamed, "same", said.append)
    assert said[-1].startswith("same: reused")
    assert (again.path, again.digest, again.name) == (first.path, first.digest, "same")
    assert again.path.stat().st_mtime_ns == built


def test_changed_source_or_parameters_are_packed_anew(tmp_path: Path, folder: Path) -> None:
    def path(**fields: Any) -> Path:
        chosen = with_set(tmp_path, layout="prid2011", folder=folder, **fields)
        return resolve(chosen, "real", lambda _: None).path

    paths = [path(), path(options={"minimum_frames": 2})]
    picture = folder / "multi_shot/cam_a/person_0001/0001.png"
    picture.write_bytes((folder / "multi_shot/cam_a/person_0002/0001.png").read_bytes())
    paths.append(path())
    splits = folder / "splits_prid2011.json"
    splits.write_text(splits.read_text().replace("person_0001", "X").replace("person_0002", "person_0001"
                      ).replace("X", "person_0002"))  # fmt: skip
    paths.append(path())
    assert len(set(paths)) == len(paths)
    assert path() == paths[-1]


@pytest.mark.parametrize("damage", ["pack", "set"])
def test_half_built_cache_is_rebuilt(damage: str, tmp_path: Path) -> None:
    chosen = config(tmp_path)
    pack = resolve(chosen, "walkers", lambda _: None)
    whole = pack.digest
    pack.path.write_bytes(pack.path.read_bytes()[:5000])
    if damage == "set":
        [generated] = (tmp_path / "cache" / "generated").glob("prid2011-*[!k]")
        (generated / walkers.MARKER).unlink()
        (generated / "multi_shot/cam_a/person_0001/0001.png").unlink()
    said: list[str] = []
    assert resolve(chosen, "walkers", said.append).digest == whole
    assert any("packed" in line for line in said)


def _resolve(chosen: DataConfig, lines: Any) -> None:
    lines.put(("digest", resolve(chosen, "walkers", lambda line: lines.put(("said", line))).digest))


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    lines: Any = spawn.Queue()
    both = [spawn.Process(target=_resolve, args=(config(tmp_path), lines)) for _ in range(2)]
    for process in both:
        process.start()
    said: list[tuple[str, str]] = []
    while sum(kind == "digest" for kind, _ in said) < 2:
        said.append(lines.get(timeout=60))
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len({text for kind, text in said if kind == "digest"}) == 1
    assert sum("generated" in text and "walkers in the layout" in text for _, text in said) == 1
    assert sum("packed" in text for _, text in said) == 1
    assert sum("reused" in text for _, text in said) == 1


def test_unwritable_cache_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chosen = config(tmp_path, cache=tmp_path / "file" / "cache")
    for call in (lambda: check(chosen), lambda: resolve(chosen, "walkers")):
        with pytest.raises(DataError, match=r"^data\.cache: .*file/cache.* cannot be written") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_cache_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    chosen = config(tmp_path, cache=tmp_path / "locked" / "cache")
    for call in (lambda: check(chosen), lambda: resolve(chosen, "walkers")):
        with pytest.raises(DataError, match=r"^data\.cache: "):
            call()


def test_default_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(tmp_path, cache=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("REID_CACHE", raising=False)
    assert cache_folder(chosen) == tmp_path / "xdg" / "multi-shot-reid"
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "mine"))
    assert cache_folder(chosen) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"sequences": "walker"}, r"data\.sequences: no set 'walker'; did you mean 'walkers'\?"),
        ({"targets": ["walkers-c"]}, r"data\.targets: no set 'walkers-c'; did you mean 'walkers-b'\?"),
        (
            {"sequences": "walkers-stills"},
            r"data\.sequences: 'walkers-stills' holds images .*: walkers, walkers-b",
        ),
        ({"images": ["walkers"]}, r"data\.images: 'walkers' holds sequences"),
        ({"targets": ["walkers-stills"]}, r"data\.targets: 'walkers-stills' has no test part"),
        ({"split": 10}, r"data\.split: 10 is out of range; set 'walkers' has 0 to 9"),
        (
            {"sequences": "walkers-b", "split": 1},
            r"data\.split: 1 is out of range; set 'walkers-b' has only 0",
        ),
        ({"validation": 0.9}, r"data\.validation: 0\.9 of 4 training identities of 'walkers'"),
    ],
)
def test_wrong_use_of_a_set_is_named(fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{line}"):
        check(config(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"layout": "prid", "folder": "/x"},
            r"data\.sets\.real\.layout: no layout 'prid'; did you mean 'prid2011'",
        ),
        ({"layout": "prid2011", "folder": "/nowhere"}, r"data\.sets\.real\.folder: /nowhere: no such folder"),
        (
            {"layout": "prid2011", "folder": "/x", "options": {"minimum_frame": 2}},
            r"data\.sets\.real\.options: .*did you mean 'minimum_frames'",
        ),
        (
            {"layout": "sequences", "generate": {}},
            r"data\.sets\.real\.generate: layout 'sequences' cannot be",
        ),
        ({"layout": "mars", "generate": {"hdf5": True}}, r"data\.sets\.real\.generate: hdf5: mars has no"),
    ],
)
def test_wrong_set_is_named(fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    for call in (check, lambda chosen: resolve(chosen, "real", lambda _: None)):
        with pytest.raises(DataError, match=f"^{line}"):
            call(with_set(tmp_path, **fields))


def test_empty_folder_and_lost_camera_are_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data\.sets\.real\.folder: .*empty: the folder is empty"):
        check(with_set(tmp_path, layout="prid2011", folder=tmp_path / "empty"))
    (folder / "multi_shot/cam_b/person_0003").rename(tmp_path / "person_0003")
    with pytest.raises(DataError, match=r"^data\.sets\.real\.folder: .*person_0003 are only in cam_a"):
        check(with_set(tmp_path, layout="prid2011", folder=folder))


def test_unreadable_frame_names_set_and_file(tmp_path: Path, folder: Path) -> None:
    (folder / "multi_shot/cam_a/person_0001/0001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"^data\.sets\.real: .*person_0001/0001\.png"):
        resolve(with_set(tmp_path, layout="prid2011", folder=folder), "real", lambda _: None)


def test_a_set_has_exactly_one_source(tmp_path: Path) -> None:
    for fields in ({}, {"folder": "/x", "generate": {}}):
        with pytest.raises(ValidationError, match="exactly one of folder and generate"):
            with_set(tmp_path, layout="mars", **fields)


@pytest.mark.parametrize(
    ("roles", "first"),
    [
        ({"images": ["market"], "targets": ["mars"]}, "'market' is trained on and 'mars' holds people back"),
        ({"images": ["market"], "sequences": "mars"}, "'market' is trained on and 'mars' holds people back"),
        ({"sequences": "mars", "targets": ["market"]}, "'mars' is trained on and 'market' holds people back"),
    ],
)
def test_published_sets_that_share_people_are_refused(
    roles: dict[str, Any], first: str, tmp_path: Path
) -> None:
    sets = {
        **SETS,
        "market": {"layout": "market1501", "folder": "/x"},
        "mars": {"layout": "mars", "folder": "/y"},
    }
    with pytest.raises(DataError, match=rf"^data\.shared_people: {first}.*write data\.shared_people: drop"):
        check(config(tmp_path, sets=sets, **roles))


def test_generated_sets_share_people_under_one_seed_only(tmp_path: Path) -> None:
    def shared(seed: int) -> DataConfig:
        market = {"layout": "market1501", "generate": {"identities": 12, "seed": seed}}
        return config(tmp_path, sets={**SETS, "market": market}, images=["market"])

    check(shared(3))
    with pytest.raises(DataError, match=r"^data\.shared_people: 'market' .* 'walkers-b' holds"):
        check(shared(2))


TRAIN, TEST = ("0001", "0002", "0005", "0006", "0009", "0010"), ("0003", "0004")
"""People of a MARS made by hand; a Market-1501 beside it trains 2 3 5 7 and tests 4 6 8."""


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """MARS and Market-1501 with people in common, every person in two cameras, one frame each."""
    mars, market = tmp_path / "MARS", tmp_path / "Market"
    for part, people in (("train", TRAIN), ("test", TEST)):
        views = [(person, camera) for person in people for camera in (1, 2)]
        names = [f"{person}C{camera}T0001F001.jpg" for person, camera in views]
        for (person, _), name in zip(views, names, strict=True):
            save_image(mars / f"bbox_{part}" / person / name)
        rows = [(i + 1, i + 1, int(person), camera) for i, (person, camera) in enumerate(views)]
        (mars / "info").mkdir(exist_ok=True)
        (mars / "info" / f"{part}_name.txt").write_text("\n".join(names))
        scipy.io.savemat(mars / "info" / f"tracks_{part}_info.mat", {f"track_{part}_info": rows})
    scipy.io.savemat(mars / "info" / "query_IDX.mat", {"query_IDX": [[1, 3]]})
    parts = {"bounding_box_train": "2357", "bounding_box_test": "468", "query": "468"}
    for part, people in parts.items():
        for camera in (1, 2):
            for person in people:
                save_image(market / part / f"000{person}_c{camera}s1_000001_01.jpg")
    return {
        "mars": {"layout": "mars", "folder": str(mars)},
        "market": {"layout": "market1501", "folder": str(market)},
        "walkers": SETS["walkers"],
    }


def held(chosen: DataConfig, name: str) -> frozenset[str]:
    packs = {other: resolve(chosen, other, lambda _: None) for other in ("mars", "market")}
    return held_back(chosen, name, packs, seed=0)


@pytest.mark.parametrize(
    ("roles", "of_market", "of_mars"),
    [
        ({"targets": ["mars"]}, {"0003", "0004"}, set()),
        ({"targets": ["market"]}, set(), {"0004", "0006", "0008"}),
        ({"targets": ["mars", "market"]}, {"0003", "0004"}, {"0004", "0006", "0008"}),
        ({"targets": ["walkers"]}, set(), set()),
        ({"targets": ["mars"], "shared_people": "refuse"}, set(), set()),
    ],
)
def test_people_tested_in_one_set_are_held_back_in_the_other(
    roles: dict[str, Any], of_market: set[str], of_mars: set[str], pair: dict[str, Any], tmp_path: Path
) -> None:
    given = {"sets": pair, "sequences": "walkers", "images": [], "shared_people": "drop"} | roles
    chosen = config(tmp_path, **given)
    assert held(chosen, "market") == of_market
    assert held(chosen, "mars") == of_mars


def test_people_validated_in_mars_are_held_back_in_market(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(
        tmp_path, sets=pair, sequences="mars", images=["market"], targets=["market"], shared_people="drop"
    )
    # 5 of 6 people of MARS are left, as Market-1501 tests 6; 2 of them validate.
    assert check(chosen) == 3
    validating = held(chosen, "market")
    assert len(validating) == 2
    assert validating < set(TRAIN) - {"0006"}
    pack = resolve(chosen, "mars", lambda _: None)
    train, query, _ = training_part(pack, 0, chosen.validation, 0, held(chosen, "mars"))
    assert labels(pack, query) == validating
    assert labels(pack, train) == set(TRAIN) - {"0006"} - validating


def labels(pack: Pack, part: np.ndarray) -> set[str]:
    return set(pack.identities[part].tolist())


def test_two_camera_set_validates_from_the_first_camera_to_the_second(tmp_path: Path) -> None:
    pack = resolve(config(tmp_path), "walkers", lambda _: None)
    for split in range(10):
        train, query, gallery = training_part(pack, split, 0.5, seed=0)
        test = {*split_of(pack, split).query, *split_of(pack, split).gallery}
        assert not {*train, *query, *gallery} & test
        assert {*train, *query, *gallery} == {*split_of(pack, split).train}
        assert not labels(pack, train) & labels(pack, query)
        assert labels(pack, query) == labels(pack, gallery)
        assert set(pack.cameras[query]) == {"a"}
        assert set(pack.cameras[gallery]) == {"b"}
        assert (len(query), len(gallery), len(train)) == (2, 2, 4)


def test_many_camera_set_has_one_query_per_person_and_camera(tmp_path: Path) -> None:
    pack = resolve(config(tmp_path), "walkers-b", lambda _: None)
    train, query, gallery = training_part(pack, 0, 0.4, seed=1)
    pairs = list(zip(pack.identities[query], pack.cameras[query], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == set(zip(pack.identities[gallery], pack.cameras[gallery], strict=True))
    assert set(query.tolist()) <= set(gallery.tolist())
    assert not labels(pack, train) & labels(pack, gallery)
    assert not {JUNK, DISTRACTOR} & (labels(pack, train) | labels(pack, gallery))
    assert {*train, *gallery} == {*split_of(pack, 3).train}


def test_validation_people_follow_the_seed(tmp_path: Path) -> None:
    pack = resolve(config(tmp_path), "walkers", lambda _: None)
    chosen = [tuple(training_part(pack, 0, 0.5, seed)[1]) for seed in (0, 0, 1, 2, 3, 4)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_split_out_of_range_is_refused(tmp_path: Path) -> None:
    pack = resolve(config(tmp_path), "walkers", lambda _: None)
    for call in (lambda: split_of(pack, 10), lambda: training_part(pack, 10, 0.5, 0)):
        with pytest.raises(DataError, match=r"data\.split: 10 is out of range"):
            call()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"targets": ["same-folder"]}, "both are read from"),
        ({"targets": ["same-seed"]}, "both are drawn from seed 5"),
        ({"images": ["drawn", "drawn"], "targets": ["drawn"]}, "names a set twice"),
    ],
)
def test_people_held_back_are_not_trained_on_under_another_name(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    sets = {
        **SETS,
        "folder": {"layout": "prid2011", "folder": str(tmp_path)},
        "same-folder": {"layout": "prid2011", "folder": str(tmp_path), "options": {"minimum_frames": 2}},
        "drawn": {"layout": "market1501", "generate": {"identities": 12, "seed": 5}},
        "same-seed": {"layout": "market1501", "generate": {"identities": 14, "seed": 5}},
    }
    given = {"sequences": "folder", "images": ["drawn"]} | change
    with pytest.raises(DataError, match=expected):
        check(config(tmp_path, sets=sets, **given))
