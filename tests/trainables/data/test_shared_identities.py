"""Tests of MARS and Market-1501 together: no identity of a test or validation part trains."""

import logging

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.recorder import Recorder
from trainables.alignment import AlignmentTrainable
from trainables.data import config as data_config
from trainables.data.sources import resolve
from trainables.data.tracklet import DISTRACTOR, JUNK
from trainables.errors import DataError

SETS = {
    "mars": {"layout": "mars", "generate": {"identities": 32, "frames": 4, "seed": 7}},
    "market": {"layout": "market1501", "generate": {"identities": 40, "seed": 7}},
}


def identities_tested(config, name):
    """The identities in the test part of a set with one split."""
    pack = resolve(config.data, name)
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
        return tiny(data={"sets": SETS, "shared_identities": "drop", **data})

    return build


def test_images_drop_test_identities_of_the_target(sharing, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = sharing(images=["market"], targets=["walkers", "mars"])
    records = AlignmentTrainable().prepare(config)
    images = AlignmentTrainable().training(config, Recorder(tmp_path)).batches.images
    identities, held = {f"{number:04}" for number in range(1, 41)}, identities_tested(config, "mars")
    assert len(held) == 16
    assert drawn(images) == identities - held
    assert images.identities == 24
    market = counts(records, "images", "market")
    assert (market["identities"], market["dropped identities"]) == (42, 16)  # junk and distractors are two
    pack = resolve(config.data, "market")
    lost = np.isin(pack.identities, list(held)).sum()
    assert market["dropped tracklets"] == lost
    assert (
        f"market: dropped 16 identities with {lost} images, because mars validates or tests them"
        in caplog.messages
    )
    assert "dropped identities" not in counts(records, "target", "mars")


def test_images_drop_validation_identities(sharing, tmp_path):
    config = sharing(sequences="mars", images=["market"], targets=["mars", "market"])
    training = AlignmentTrainable().training(config, Recorder(tmp_path))
    images, sequences = drawn(training.batches.images), drawn(training.batches.sequences)
    validating = {str(identity) for part in training.validation for identity in part.identities}
    held = identities_tested(config, "mars") | identities_tested(config, "market")
    assert len(validating) >= 2
    assert not validating & (images | sequences | held)
    assert not held & (images | sequences)
    assert images & sequences


def test_sequences_drop_test_identities_of_the_images(sharing, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = sharing(sequences="mars", targets=["market"])
    records = AlignmentTrainable().prepare(config)
    training = AlignmentTrainable().training(config, Recorder(tmp_path))
    validating = {str(identity) for part in training.validation for identity in part.identities}
    pack = resolve(config.data, "mars")
    trained = set(pack.identities[list(pack.splits[0].train)].tolist())
    assert trained & identities_tested(config, "market")
    assert drawn(training.batches.sequences) | validating == trained - identities_tested(config, "market")
    dropped = counts(records, "train", "mars")["dropped identities"]
    assert dropped == len(trained & identities_tested(config, "market"))
    assert any(line.startswith(f"mars: dropped {dropped} identities") for line in caplog.messages)


def test_drop_leaving_too_few_identities_is_refused(sharing):
    config = sharing(sequences="mars", targets=["market"], validation=0.9)
    with pytest.raises(DataError, match=r"^data\.validation: 0\.9 of the \d training identities of 'mars'"):
        AlignmentTrainable().check(config, workers=1)


def test_shared_identities_refuse_names_the_field(sharing):
    config = sharing(images=["market"], targets=["mars"], shared_identities="refuse")
    with pytest.raises(
        DataError, match=r"^data\.shared_identities: 'market' .*write data\.shared_identities: drop"
    ):
        AlignmentTrainable().check(config, workers=1)


def test_shared_people_is_read_with_one_warning(tiny, caplog):
    data_config._warn_of_shared_people.cache_clear()
    configs = [tiny(data={"shared_people": "drop"}) for _ in range(2)]
    assert [config.data.shared_identities for config in configs] == ["drop", "drop"]
    assert caplog.messages == [
        "data.shared_people is now called data.shared_identities; rename it in the file"
    ]


def test_shared_people_with_shared_identities_is_refused(tiny):
    with pytest.raises(ValidationError, match="shared_people is the old name of shared_identities; remove"):
        tiny(data={"shared_people": "drop", "shared_identities": "drop"})
