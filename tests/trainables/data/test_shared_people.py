"""MARS and Market-1501 share people: nobody whom one of them holds back is trained on in the other."""

import numpy as np
import pytest

from tests.support.recorder import Recorder
from trainables.alignment import AlignmentTrainable
from trainables.data.sources import resolve
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError

SETS = {
    "mars": {"layout": "mars", "generate": {"identities": 32, "frames": 4, "seed": 7}},
    "market": {"layout": "market1501", "generate": {"identities": 40, "seed": 7}},
}


def people_tested(config, name):
    """Everybody in the test part of a set with one split."""
    pack = resolve(config.data, name, lambda line: None)
    [split] = pack.splits
    return set(pack.identities[[*split.query, *split.gallery]].tolist()) - {JUNK, DISTRACTOR}


def drawn(modality):
    return {str(pack.identities[tracklet]) for pack, tracklet in modality._items}


def counts(records, role, name):
    [record] = [record for record in records if (record.role, record.name) == (role, name)]
    return record.counts


@pytest.fixture
def sharing(tiny):
    def build(**data):
        return tiny(data={"sets": SETS, "shared_people": "drop", **data})

    return build


def test_images_lose_the_people_whom_the_target_tests(sharing, tmp_path):
    config = sharing(images=["market"], targets=["walkers", "mars"])
    said: list[str] = []
    records = AlignmentTrainable().prepare(config, said.append)
    images = AlignmentTrainable().training(config, Recorder(tmp_path)).batches.images
    everybody, held = {f"{number:04}" for number in range(1, 41)}, people_tested(config, "mars")
    assert len(held) == 16
    assert drawn(images) == everybody - held
    assert images.identities == 24
    market = counts(records, "images", "market")
    assert (market["identities"], market["dropped identities"]) == (42, 16)  # junk and distractors are two
    pack = resolve(config.data, "market", lambda line: None)
    lost = np.isin(pack.identities, list(held)).sum()
    assert market["dropped tracklets"] == lost
    assert f"market: dropped 16 people with {lost} images, because mars validates or tests them" in said
    assert "dropped identities" not in counts(records, "target", "mars")


def test_images_lose_validation_people_too_and_keep_those_trained_on(sharing, tmp_path):
    config = sharing(sequences="mars", images=["market"], targets=["mars", "market"])
    training = AlignmentTrainable().training(config, Recorder(tmp_path))
    images, sequences = drawn(training.batches.images), drawn(training.batches.sequences)
    validating = {str(identity) for part in training.validation for identity in part.identities}
    held = people_tested(config, "mars") | people_tested(config, "market")
    assert len(validating) >= 2
    assert not validating & (images | sequences | held)
    assert not held & (images | sequences)
    assert images & sequences


def test_sequences_lose_the_people_whom_an_image_set_tests(sharing, tmp_path):
    config = sharing(sequences="mars", targets=["market"])
    said: list[str] = []
    records = AlignmentTrainable().prepare(config, said.append)
    training = AlignmentTrainable().training(config, Recorder(tmp_path))
    validating = {str(identity) for part in training.validation for identity in part.identities}
    pack = resolve(config.data, "mars", lambda line: None)
    trained = set(pack.identities[list(pack.splits[0].train)].tolist())
    assert trained & people_tested(config, "market")
    assert drawn(training.batches.sequences) | validating == trained - people_tested(config, "market")
    dropped = counts(records, "train", "mars")["dropped identities"]
    assert dropped == len(trained & people_tested(config, "market"))
    assert any(line.startswith(f"mars: dropped {dropped} people") for line in said)


def test_too_few_people_left_is_one_line_before_anything_is_written(sharing):
    config = sharing(sequences="mars", targets=["market"], validation=0.9)
    with pytest.raises(DataError, match=r"^data\.validation: 0\.9 of \d training identities of 'mars'"):
        AlignmentTrainable().check(config, workers=1)


def test_without_the_switch_such_a_pair_is_refused(sharing):
    config = sharing(images=["market"], targets=["mars"], shared_people="refuse")
    with pytest.raises(DataError, match=r"^data\.shared_people: 'market' .*write data\.shared_people: drop"):
        AlignmentTrainable().check(config, workers=1)
