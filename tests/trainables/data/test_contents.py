"""A hash of a test part that does not depend on packing, and identities that two configs share."""

import shutil
from pathlib import Path

import pytest

from tests.support.data_configs import SETS, data_config, with_set
from tests.support.tiny_sets import save_image
from trainables.data import sources
from trainables.data.contents import content_hash, identities_tested, identities_trained
from trainables.data.parts import DataParts


def parts(config):
    return DataParts(config, sources.resolve_all(config, config.sets))


def own(tmp_path, folder, options):
    sets = {"real": {"layout": "sequences", "folder": folder, "options": options}}
    return data_config(tmp_path, sets=sets, sequences="real", images=[], targets=["real"], validation=0)


def shared(trained, tested):
    return {
        name for numbering in trained for name in set(trained[numbering]) & set(tested.get(numbering, []))
    }


def test_content_does_not_depend_on_the_frame_size(tmp_path: Path) -> None:
    sizes = [data_config(tmp_path), data_config(tmp_path, height=64)]
    assert len({content_hash(config, "walkers") for config in sizes}) == 1


@pytest.mark.parametrize("field", [{"split": 1}, {}])
def test_content_depends_on_the_split(tmp_path: Path, field: dict[str, int]) -> None:
    same = content_hash(data_config(tmp_path), "walkers") == content_hash(
        data_config(tmp_path, **field), "walkers"
    )
    assert same is (field == {})


def test_content_does_not_depend_on_the_place_of_a_folder(written, tmp_path: Path) -> None:
    copy = shutil.copytree(written("sequences"), tmp_path / "copy")
    folders = [written("sequences"), copy]
    configs = [
        with_set(tmp_path, layout="sequences", folder=folder, options={"random_splits": 2})
        for folder in folders
    ]
    first, second = (content_hash(config, "real") for config in configs)
    assert first == second


def test_content_depends_on_every_frame(unpacked, tmp_path: Path) -> None:
    folder = unpacked("sequences")
    config = with_set(tmp_path, layout="sequences", folder=folder, options={"random_splits": 2})
    before = content_hash(config, "real")
    for frame in folder.rglob("000.png"):
        save_image(frame, 200)
    assert content_hash(config, "real") != before


def test_parts_of_one_set_share_no_identity(tmp_path: Path) -> None:
    data = parts(data_config(tmp_path))
    trained = identities_trained(data, data.config.images)
    assert all(trained.values()) and not shared(trained, identities_tested(data, "walkers"))


def test_other_split_of_a_set_shares_identities(tmp_path: Path) -> None:
    data, other = parts(data_config(tmp_path)), parts(data_config(tmp_path, split=1))
    assert shared(identities_trained(data, []), identities_tested(other, "walkers"))


@pytest.mark.parametrize(("seed", "share"), [(2, True), (3, False)])
def test_mars_and_market_share_identities_of_one_seed(tmp_path: Path, seed: int, share: bool) -> None:
    sets = {
        "walkers": {"layout": "prid2011", "generate": {"identities": 8, "frames": 2}},
        "mars": {"layout": "mars", "generate": {"identities": 16, "frames": 2, "seed": 2}},
        "market": {"layout": "market1501", "generate": {"identities": 16, "seed": seed}},
    }
    trains = parts(data_config(tmp_path, sets=sets, images=["market"], targets=[]))
    tests = parts(data_config(tmp_path, sets=sets, images=[], targets=["mars"]))
    trained = identities_trained(trains, ["market"])
    assert bool(shared(trained, identities_tested(tests, "mars"))) is share


def test_copies_of_own_images_share_identities(written, tmp_path: Path) -> None:
    copy = shutil.copytree(written("sequences"), tmp_path / "copy")
    options = {"random_splits": 2}
    first, second = (
        parts(own(tmp_path, folder, {**options, "seed": seed}))
        for folder, seed in ((written("sequences"), 0), (copy, 1))
    )
    assert shared(identities_trained(first, []), identities_tested(second, "real"))


@pytest.mark.parametrize("removed", ["none", "1.jpg"])
def test_shared_identities_are_counted_not_their_images(unpacked, tmp_path: Path, removed: str) -> None:
    folder = unpacked("images")
    for number, image in enumerate(sorted(folder.rglob("*.jpg"))):
        save_image(image, 10 * number)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for image in copy.rglob(removed):
        image.unlink()

    def drawn(place: Path, seed: int) -> DataParts:
        real = {"layout": "images", "folder": place, "options": {"random_splits": 2, "seed": seed}}
        return parts(data_config(tmp_path, sets={**SETS, "real": real}, images=["real"], targets=["real"]))

    first, second = drawn(folder, 0), drawn(copy, 1)
    trained = set(first.images("real").identities)
    both = {name for part in second.test("real") for name in part.identities if name in trained}
    assert both
    assert len(shared(identities_trained(first, ["real"]), identities_tested(second, "real"))) == len(both)
