"""Tests of splits: no identity is in two parts, and every fault is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from pydantic import ValidationError

from tests.support.data_configs import SETS, data_config
from tests.support.tiny_sets import save_image
from trainables.data.config import DataConfig
from trainables.data.packing import Pack
from trainables.data.sources import resolve
from trainables.data.splits import check, held_back, split_of, training_part, validation_part
from trainables.data.tracklet import DISTRACTOR, JUNK
from trainables.errors import DataError


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"sequences": "walker"}, r"data\.sequences: no set 'walker'; did you mean 'walkers'\?"),
        ({"targets": ["walkers-c"]}, r"data\.targets: no set 'walkers-c'; did you mean 'walkers-b'\?"),
        (
            {"sequences": "walkers-stills"},
            r"data\.sequences: 'walkers-stills' has images .*: walkers, walkers-b",
        ),
        ({"images": ["walkers"]}, r"data\.images: 'walkers' has sequences"),
        ({"targets": ["walkers-stills"]}, r"data\.targets: 'walkers-stills' has no test part"),
        ({"split": 10}, r"data\.split: 10 is out of range; set 'walkers' has 0 to 9"),
        ({"validation": 0.9}, r"data\.validation: 0\.9 of the 4 training identities of 'walkers'"),
        ({"fold": 2, "validation": 0.5}, r"data\.fold: 2 is out of range; 2 of the 4 .* so there is 0 to 1"),
        ({"fold": 1, "validation": 0}, r"data\.fold: 1 is out of range; 0 of the 4 .* so there is only 0"),
        (
            {"folds": 2, "fold": 1, "validation": 0.5},
            r"data\.folds: 2 is too many; 2 of the 4 .* validate, so there are 1 from data\.fold 1 on",
        ),
        ({"folds": 2, "validation": 0}, r"data\.folds: 2 is too many; 0 of the 4 training identities"),
        ({"validate": ["walker-b"]}, r"data\.validate: no set 'walker-b'; did you mean 'walkers-b'\?"),
        ({"validate": ["walkers"]}, r"data\.validate: 'walkers' is the set that trains, whose validation"),
        ({"validate": ["walkers-stills"]}, r"data\.validate: 'walkers-stills' is in data\.images, so it"),
        ({"validate": ["walkers-b", "walkers-b"]}, r"data\.validate: 'walkers-b' is named twice"),
        ({"targets": ["walkers-b", "walkers-b"]}, r"data\.targets: 'walkers-b' is named twice"),
        (
            {"sets": {**SETS, "cross": SETS["walkers-b"]}, "targets": [], "validate": ["cross"]},
            r"data\.validate: 'cross' is the name of the mean over all sets; rename the set",
        ),
        (
            {"sets": {**SETS, "again": SETS["walkers-b"]}, "validate": ["again"]},
            r"data: 'again' is for validation and 'walkers-b' for test, but both are drawn from seed 2",
        ),
        (
            {"sets": {**SETS, "again": SETS["walkers"]}, "validate": ["again"]},
            r"data: 'walkers' is for training and 'again' for validation or test, but both are drawn",
        ),
    ],
)
def test_check_set_in_wrong_role_is_named(fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{line}"):
        check(data_config(tmp_path, **fields))


@pytest.mark.parametrize(
    ("roles", "first"),
    [
        (
            {"images": ["market"], "targets": ["mars"]},
            "'market' is for training and 'mars' for validation or test",
        ),
        (
            {"images": ["market"], "sequences": "mars"},
            "'market' is for training and 'mars' for validation or test",
        ),
        (
            {"sequences": "mars", "targets": ["market"]},
            "'mars' is for training and 'market' for validation or test",
        ),
    ],
)
def test_check_mars_with_market1501_is_refused(roles: dict[str, Any], first: str, tmp_path: Path) -> None:
    sets = {
        **SETS,
        "market": {"layout": "market1501", "folder": "/x"},
        "mars": {"layout": "mars", "folder": "/y"},
    }
    with pytest.raises(
        DataError, match=rf"^data\.shared_identities: {first}.*write data\.shared_identities: drop"
    ):
        check(data_config(tmp_path, sets=sets, **roles))


def test_check_generated_pair_of_one_seed_is_refused(tmp_path: Path) -> None:
    def shared(seed: int) -> DataConfig:
        market = {"layout": "market1501", "generate": {"identities": 12, "seed": seed}}
        return data_config(tmp_path, sets={**SETS, "market": market}, images=["market"])

    check(shared(3))
    with pytest.raises(DataError, match=r"^data\.shared_identities: 'market' .* 'walkers-b' for validation"):
        check(shared(2))


TRAIN, TEST = ("0001", "0002", "0005", "0006", "0009", "0010"), ("0003", "0004")
"""Identities of the MARS of `pair`; its Market-1501 trains 2 3 5 7 and tests 4 6 8."""


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """MARS and Market-1501 with common identities, each in two cameras, one frame each."""
    mars, market = tmp_path / "MARS", tmp_path / "Market"
    for part, identities in (("train", TRAIN), ("test", TEST)):
        views = [(identity, camera) for identity in identities for camera in (1, 2)]
        names = [f"{identity}C{camera}T0001F001.jpg" for identity, camera in views]
        for (identity, _), name in zip(views, names, strict=True):
            save_image(mars / f"bbox_{part}" / identity / name)
        rows = [(i + 1, i + 1, int(identity), camera) for i, (identity, camera) in enumerate(views)]
        (mars / "info").mkdir(exist_ok=True)
        (mars / "info" / f"{part}_name.txt").write_text("\n".join(names))
        scipy.io.savemat(mars / "info" / f"tracks_{part}_info.mat", {f"track_{part}_info": rows})
    scipy.io.savemat(mars / "info" / "query_IDX.mat", {"query_IDX": [[1, 3]]})
    parts = {"bounding_box_train": "2357", "bounding_box_test": "468", "query": "468"}
    for part, identities in parts.items():
        for camera in (1, 2):
            for identity in identities:
                save_image(market / part / f"000{identity}_c{camera}s1_000001_01.jpg")
    return {
        "mars": {"layout": "mars", "folder": str(mars)},
        "market": {"layout": "market1501", "folder": str(market)},
        "walkers": SETS["walkers"],
    }


def held(chosen: DataConfig, name: str) -> frozenset[str]:
    packs = {other: resolve(chosen, other) for other in ("mars", "market")}
    return held_back(chosen, name, packs, seed=0)


@pytest.mark.parametrize(
    ("roles", "of_market", "of_mars"),
    [
        ({"targets": ["mars"]}, {"0003", "0004"}, set()),
        ({"targets": ["market"]}, set(), {"0004", "0006", "0008"}),
        ({"targets": ["mars", "market"]}, {"0003", "0004"}, {"0004", "0006", "0008"}),
        ({"targets": ["walkers"]}, set(), set()),
        ({"targets": ["mars"], "shared_identities": "refuse"}, set(), set()),
    ],
)
def test_held_back_returns_test_identities_of_the_other(
    roles: dict[str, Any], of_market: set[str], of_mars: set[str], pair: dict[str, Any], tmp_path: Path
) -> None:
    given = {"sets": pair, "sequences": "walkers", "images": [], "shared_identities": "drop"} | roles
    chosen = data_config(tmp_path, **given)
    assert held(chosen, "market") == of_market
    assert held(chosen, "mars") == of_mars


def test_held_back_returns_validation_identities_of_mars(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = data_config(
        tmp_path, sets=pair, sequences="mars", images=["market"], targets=["market"], shared_identities="drop"
    )
    # 5 of 6 identities of MARS are left, as Market-1501 tests 6; 2 of them validate.
    assert check(chosen) == 3
    validating = held(chosen, "market")
    assert len(validating) == 2
    assert validating < set(TRAIN) - {"0006"}
    pack = resolve(chosen, "mars")
    train, query, _ = training_part(pack, 0, chosen.validation, 0, held(chosen, "mars"))
    assert labels(pack, query) == validating
    assert labels(pack, train) == set(TRAIN) - {"0006"} - validating


def labels(pack: Pack, part: np.ndarray) -> set[str]:
    return set(pack.identities[part].tolist())


def test_training_part_two_cameras_first_is_query(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers")
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


def test_training_part_many_cameras_one_query_in_each(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers-b")
    train, query, gallery = training_part(pack, 0, 0.4, seed=1)
    pairs = list(zip(pack.identities[query], pack.cameras[query], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == set(zip(pack.identities[gallery], pack.cameras[gallery], strict=True))
    assert set(query.tolist()) <= set(gallery.tolist())
    assert not labels(pack, train) & labels(pack, gallery)
    assert not {JUNK, DISTRACTOR} & (labels(pack, train) | labels(pack, gallery))
    assert {*train, *gallery} == {*split_of(pack, 3).train}


def test_training_part_validation_follows_the_seed(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers")
    chosen = [tuple(training_part(pack, 0, 0.5, seed)[1]) for seed in (0, 0, 1, 2, 3, 4)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_split_out_of_range_is_refused(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers")
    for call in (lambda: split_of(pack, 10), lambda: training_part(pack, 10, 0.5, 0)):
        with pytest.raises(DataError, match=r"data\.split: 10 is out of range"):
            call()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"targets": ["same-folder"]}, "both are read from"),
        ({"targets": ["same-seed"]}, "both are drawn from seed 5"),
        ({"images": ["drawn", "drawn"], "targets": ["drawn"]}, "'drawn' is named twice"),
    ],
)
def test_check_one_source_under_two_names_is_refused(
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
        check(data_config(tmp_path, sets=sets, **given))


def test_check_target_whose_queries_have_no_match_is_refused(tmp_path: Path) -> None:
    """Images of one camera: every query has its identity in the gallery, but in no other camera."""
    for person in range(1, 7):
        parts = ("bounding_box_train",) if person < 4 else ("query", "bounding_box_test")
        for number, part in enumerate(parts, 1):
            save_image(tmp_path / f"own/{part}/{person:04}_c1s1_{number:06}_00.jpg", person)
    sets = {**SETS, "own": {"layout": "market1501", "folder": str(tmp_path / "own")}}
    with pytest.raises(DataError, match=r"^data\.targets: no query of 'own' has a match in another camera"):
        check(data_config(tmp_path, sets=sets, targets=["own"]))
    line = r"^data\.validate: the training part of 'own' has no identities in several cameras; expected a set"
    with pytest.raises(DataError, match=line):
        check(data_config(tmp_path, sets=sets, validate=["own"]))


@pytest.mark.parametrize(
    "name", ["prid (full)", "", " a", "a ", "50%", "a/b", "a+b", "#1", "x=y", "it's", "n" * 65]
)
def test_name_of_a_set_that_mlflow_refuses_is_refused(name: str, tmp_path: Path) -> None:
    sets = {name: SETS["walkers"], "walkers-stills": SETS["walkers-stills"]}
    with pytest.raises(ValidationError, match="of a set; expected at most 64 letters, digits, spaces"):
        data_config(tmp_path, sets=sets, sequences=name, targets=[name])


def test_paths_of_data_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in another folder than the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REID_CACHE", "cache")
    config = data_config(
        tmp_path, sets={"own": {"layout": "mars", "folder": "data/mars"}}, sequences="own", cache=None
    )
    assert config.sets["own"].folder == tmp_path / "data/mars"
    assert config.cache_folder == tmp_path / "cache"
    monkeypatch.chdir("/")
    assert config.cache_folder == tmp_path / "cache"
    assert data_config(tmp_path, cache="packs").cache == Path("/packs")


def test_set_with_one_official_split_has_it_as_every_split(tmp_path: Path) -> None:
    """A comparison may run all splits of one set beside another set that has one."""
    assert check(data_config(tmp_path, sequences="walkers-b", targets=["walkers-b"], images=[], split=3)) > 0
    pack = resolve(data_config(tmp_path), "walkers-b")
    for split in (0, 3):
        train, query, _ = training_part(pack, split, 0.25, 0)
        assert {*train, *query} <= set(pack.splits[0].train)


@pytest.mark.parametrize("name", ["wälder", "prid 2011", "a.b-c_d", "iLIDS:1"])
def test_name_of_a_set_that_mlflow_accepts_is_accepted(name: str, tmp_path: Path) -> None:
    sets = {name: SETS["walkers"]}
    assert name in data_config(tmp_path, sets=sets, sequences=name, targets=[name], images=[]).sets


def test_folder_of_an_unknown_user_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="folder"):
        data_config(tmp_path, sets={"own": {"layout": "mars", "folder": "~nobody-at-all/x"}}, sequences="own")


def test_validate_drops_what_the_other_of_the_pair_tests(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = data_config(
        tmp_path,
        sets=pair,
        sequences="walkers",
        images=[],
        targets=["market"],
        validate=["mars"],
        shared_identities="drop",
    )
    assert check(chosen) > 0
    assert held(chosen, "mars") == {"0004", "0006", "0008"}
    pack = resolve(chosen, "mars")
    query, gallery = validation_part(pack, chosen, 0, held(chosen, "mars"))
    assert labels(pack, query) == labels(pack, gallery) == set(TRAIN) - {"0006"}


def test_training_drops_what_the_other_of_the_pair_validates(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = data_config(
        tmp_path,
        sets=pair,
        sequences="walkers",
        images=["market"],
        targets=[],
        validate=["mars"],
        shared_identities="drop",
    )
    assert check(chosen) > 0
    assert held(chosen, "market") == set(TRAIN)
    with pytest.raises(
        DataError, match="'market' is for training and 'mars' for validation or test, but MARS"
    ):
        check(chosen.model_copy(update={"shared_identities": "refuse"}))


def test_validate_identities_bounds_the_validation_part(tmp_path: Path) -> None:
    drawn = []
    for fold in (0, 1):
        chosen = data_config(tmp_path, validate=["walkers-b"], validate_identities=3, fold=fold, targets=[])
        pack = resolve(chosen, "walkers-b")
        drawn.append(labels(pack, validation_part(pack, chosen, 0)[0]))
    assert [len(names) for names in drawn] == [3, 3]
    assert drawn[0] != drawn[1]


def test_folds_hold_disjoint_identities_out(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers")
    parts = [training_part(pack, 0, 0.5, seed=0, fold=fold) for fold in (0, 1)]
    assert labels(pack, parts[0][1]) == labels(pack, parts[1][0])
    assert labels(pack, parts[0][0]) == labels(pack, parts[1][1])


def test_fold_0_is_the_selection_of_earlier_versions(tmp_path: Path) -> None:
    pack = resolve(data_config(tmp_path), "walkers")
    _, query, _ = training_part(pack, 3, 0.5, seed=0)
    candidates = np.unique(pack.identities[list(split_of(pack, 3).train)])
    assert labels(pack, query) == set(np.random.default_rng([0, 3]).permutation(candidates)[:2].tolist())


def test_config_with_validate_is_equal_to_its_json(tmp_path: Path) -> None:
    chosen = data_config(tmp_path, validate=["walkers-b"], fold=1)
    assert chosen.model_dump(mode="json")["validate"] == ["walkers-b"]
    assert DataConfig.model_validate_json(chosen.model_dump_json()) == chosen
