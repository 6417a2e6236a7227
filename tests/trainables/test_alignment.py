"""What the trainable trains and tests on, how it is driven, and the one line it gives for bad input."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from tests.support.recorder import InterruptedTrialError, Recorder
from tests.trainables.conftest import merged
from trainables.alignment import AlignmentTrainable
from trainables.data.packing import Pack
from trainables.data.sources import resolve
from trainables.errors import DataError
from trainables.evaluation.embedding import embed
from trainables.evaluation.pseudo import PSEUDO_METRICS
from trainables.evaluation.scoring import score
from trainables.network.embedder import SequenceEmbedder
from trainables.network.encoders import EncoderConfig, build_encoder


def drawn(modality):
    """(pack name, identity) of everything a modality may draw."""
    return {(pack.name, str(pack.identities[tracklet])) for pack, tracklet in modality._items}


def identities_tested(config, name):
    pack = resolve(config.data, name)
    split = pack.splits[min(config.data.split, len(pack.splits) - 1)]
    return {(name, str(pack.identities[tracklet])) for tracklet in (*split.query, *split.gallery)}


def test_parts_of_training_share_no_identity(tiny, prepared, tmp_path):
    config = tiny(data={"targets": ["walkers", "stills"]})
    training = prepared.training(config, Recorder(tmp_path))
    query, gallery = training.validation
    validating = {("walkers", str(identity)) for identity in (*query.identities, *gallery.identities)}
    sequences, images = drawn(training.batches.sequences), drawn(training.batches.images)
    assert len(validating) == 8
    assert not validating & sequences
    assert not identities_tested(config, "walkers") & (sequences | validating)
    assert images and not identities_tested(config, "stills") & images


def test_images_of_no_target_all_train(tiny, prepared, tmp_path):
    images = prepared.training(tiny(), Recorder(tmp_path)).batches.images
    assert images.identities == 20


def test_validation_identities_do_not_depend_on_the_seed(tiny, prepared, tmp_path):
    parts = [
        prepared.training(tiny(seed=seed), Recorder(tmp_path)).validation[0].tracklets for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*parts)


def test_prepare_records_every_role(tiny, prepared):
    records = prepared.prepare(tiny())
    roles = {(record.role, record.name) for record in records}
    assert roles == {("train", "walkers"), ("images", "stills"), ("target", "walkers"), ("target", "others")}
    assert records[0].counts == {"identities": 40, "cameras": 2, "tracklets": 80, "frames": 480}
    assert len({record.digest for record in records}) == 3


def test_checkpoint_is_scored_on_all_targets_and_exported(tiny, prepared, tmp_path):
    config = tiny(epochs=1)
    recorder = Recorder(tmp_path / "run")
    prepared.fit(config, recorder)
    checkpoint = recorder.restore()
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".pt"}
    scores = prepared.evaluate(config, checkpoint)
    kinds = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
    names = ("walkers", "others", "others/common")
    assert list(scores) == [f"test/{name}/{kind}" for name in names for kind in kinds]
    assert all(0 <= value <= 1 for value in scores.values())
    arguments = prepared.export(config, checkpoint, tmp_path / "model")
    assert arguments["metadata"]["calibration"]["set"] == "walkers"
    card = (tmp_path / "model/model/README.md").read_text()
    assert "**others, stills, walkers: the walkers are generated, not people.**" in card
    assert "| walkers | validation | 8 | 16 | prid2011, generated | whole-gallery |" in card
    assert "identify or follow people without a legal basis" in card


def test_validate_scores_the_validation_part(tiny, prepared, tmp_path):
    training = prepared.training(tiny(), Recorder(tmp_path))
    query, gallery = training.validation
    features = [embed(training.method.embedder, part, torch.device("cpu")) for part in (query, gallery)]
    expected = score(*features, query.identities, gallery.identities, query.cameras, gallery.cameras).metrics(
        "val/", ranks=(1, 5)
    )
    metrics = training.validate()
    assert {name: value for name, value in metrics.items() if "error" not in name} == pytest.approx(expected)
    assert {name for name in metrics if "error" in name} == {f"{name}/error" for name in expected}


def test_embed_does_not_depend_on_other_tracklets(tiny, prepared, tmp_path):
    training = prepared.training(tiny(), Recorder(tmp_path))
    part = training.validation[0]
    embedder: SequenceEmbedder = training.method.embedder
    together = embed(embedder, part, torch.device("cpu"))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = embed(embedder, type(part)(part.pack, part.tracklets[2:3]), torch.device("cpu"))
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"images": []}}, "method alignment trains on images: name sets in data.images"),
        ({"alignment": {"length": 5}}, "alignment.length is 5, but batch.frames is 4; expected"),
        (
            {"optimizer": {"warmup_epochs": 3}},
            "optimizer.warmup_epochs is 3; expected at most 2 for a phase of 3 epochs",
        ),
        (
            {"evaluation": {"crops": 8}, "augmentation": {"crop": 0}},
            "evaluation.crops is 8, but augmentation.crop is 0, so all crops .* or write evaluation.crops: 1",
        ),
        ({"alignment": {"still_flow": "mean"}}, "alignment.still_flow is mean, but data.flow is none"),
        (
            {"alignment": {"motion": "borrowed", "level": "pixel"}},
            "alignment.motion is borrowed, .* needs data.flow: dis",
        ),
        (
            {"alignment": {"motion": "borrowed"}, "data": {"flow": "dis"}},
            "alignment.motion is borrowed, .* alignment.level: pixel",
        ),
        (
            {"alignment": {"still_flow": "mean", "level": "pixel"}, "data": {"flow": "dis"}},
            "alignment.still_flow is mean, but alignment.level is pixel",
        ),
    ],
    ids=["images", "length", "warmup", "crops", "flow", "borrowed", "borrowed-features", "pixel"],
)
def test_config_incompatible_fields_are_refused(changes, line, tiny):
    with pytest.raises(ValidationError, match=line):
        tiny(**changes)


def test_training_starts_from_encoder_weights(tiny, prepared, tmp_path):
    torch.manual_seed(1)
    layers = build_encoder(EncoderConfig(name="residual"), 3, 32, 16).layers.state_dict()
    path = tmp_path / "residual.safetensors"
    save_file(layers, path)
    config = tiny(encoder={"weights": str(path)})
    prepared.check(config, workers=1)
    started = prepared.training(config, Recorder(tmp_path / "run")).method.embedder.encoder.layers
    torch.testing.assert_close(dict(started.state_dict()), dict(layers))
    with pytest.raises(DataError, match=r"encoder.weights: .*other.safetensors: there is no such file"):
        prepared.check(tiny(encoder={"weights": str(tmp_path / "other.safetensors")}), workers=1)


def test_check_score_without_validation_is_refused(tiny, prepared):
    alone = tiny(data={"validation": 0})
    prepared.check(alone, workers=1, metrics=["train/loss"])
    prepared.check(tiny(), workers=1, metrics=["val/mAP"])
    with pytest.raises(DataError, match=r"^data.validation: 0 .* so val/mAP is never reported"):
        prepared.check(alone, workers=1, metrics=["train/loss", "val/mAP"])


def test_metrics_include_the_losses_of_every_method():
    losses = ("loss", "video", "pseudo", "match", "motion", "content", "distribution")
    pseudo = ("still/gap", "pseudo/gap", "pseudo/motion", "pseudo/content")
    assert AlignmentTrainable.metrics == {
        **dict.fromkeys(("model/parameters", "model/milliseconds"), "min"),
        **dict.fromkeys(("val/rank1", "val/rank5", "val/mAP", "val/mINP", "frames_per_second"), "max"),
        **dict.fromkeys((f"train/{loss}" for loss in losses), "min"),
        **dict.fromkeys((f"val/{name}" for name in pseudo), "min"),
    }


EVERY_WEIGHT = {"pseudo": 1, "match": 1, "motion": 1, "content": 1, "distribution": 1}


@pytest.mark.parametrize(
    ("changes", "every_epoch"),
    [
        ({"method": "sequence"}, {"video"}),
        ({"method": "static"}, {"video", "pseudo"}),
        ({"method": "static", "alignment": {"weights": {"pseudo": 0}}}, {"video"}),
        ({"method": "pretrain", "pretrain_epochs": 1}, set()),
        ({"method": "static", "pretrain_epochs": 1}, {"pseudo"}),
        ({"alignment": {"weights": EVERY_WEIGHT}}, {"video", *EVERY_WEIGHT}),
        ({"alignment": {"weights": EVERY_WEIGHT | {"motion": 0}}}, {"video", *EVERY_WEIGHT} - {"motion"}),
    ],
    ids=["sequence", "static", "static-not-pseudo", "pretrain", "static-pretrained", "all", "all-but-motion"],
)
def test_check_unreported_loss_is_refused(tiny, prepared, tmp_path, changes, every_epoch):
    config = tiny(epochs=2, **changes)
    recorder = Recorder(tmp_path / "run")
    prepared.fit(config, recorder)
    reported = set.intersection(*(set(report) for report in recorder.reports))
    losses = {name for name in prepared.metrics if name.startswith("train/")}
    assert reported & losses == {"train/loss", *(f"train/{name}" for name in every_epoch)}
    parts = {name for name in reported if name.startswith("train/") and name.count("/") == 2}
    prepared.check(config, workers=1, metrics=sorted(reported - parts))
    for lost in losses - reported:
        with pytest.raises(DataError, match=f"^method: '{config.method}' does not report {lost} in every"):
            prepared.check(config, workers=1, metrics=[lost])


def test_prepare_batch_of_too_many_identities_is_refused(tiny, prepared):
    with pytest.raises(
        DataError, match="batch of 13 identities needs at least as many training identities; there are 12"
    ):
        prepared.prepare(tiny(batch={"identities": 13}))


def test_training_indivisible_batch_is_refused(tiny, prepared, tmp_path):
    with pytest.raises(DataError, match="identities x sequences is 8; expected a multiple of the 3 workers"):
        prepared.training(tiny(), Recorder(tmp_path, world_size=3))


def test_pretrain_phases_have_their_own_learning_rate(tiny, prepared, tmp_path):
    recorder = Recorder(tmp_path / "run")
    prepared.fit(tiny(epochs=3, method="pretrain", pretrain_epochs=2), recorder)
    assert ["train/pseudo" in report for report in recorder.reports] == [True, True, False]
    assert ["train/video" in report for report in recorder.reports] == [False, False, True]
    rates = [report["learning_rate"] for report in recorder.reports]
    assert rates[1] < rates[0] and rates[1] < rates[2]
    for method, wrong, valid in ("pretrain", 0, "1 to 2"), ("static", 3, "0 to 2"), ("sequence", 1, "0"):
        with pytest.raises(ValidationError, match=f"expected {valid} for method {method} with 3 epochs"):
            tiny(epochs=3, method=method, pretrain_epochs=wrong)


def test_pretrain_epochs_of_alignment_use_images_alone(tiny, prepared, tmp_path):
    recorder = Recorder(tmp_path / "run")
    prepared.fit(tiny(epochs=2, pretrain_epochs=1), recorder)
    first, second = recorder.reports
    assert "train/video" not in first and {"train/video", "train/pseudo", "train/match"} <= second.keys()


def test_validation_0_trains_every_identity(tiny, prepared, tmp_path):
    config = tiny(epochs=1, data={"validation": 0})
    recorder = Recorder(tmp_path / "run")
    training = prepared.training(config, recorder)
    assert training.batches.sequences.identities == 20
    training.run()
    assert "train/loss" in recorder.reports[0] and "val/mAP" not in recorder.reports[0]


@pytest.mark.parametrize(
    ("changes", "paths", "metric", "line"),
    [
        ({}, ["seed"], "val/mAP", "seed: the search would pick the luckiest training"),
        ({}, ["data.split"], "val/mAP", "data.split: it changes how a trial is scored"),
        ({}, ["data.validation"], "val/mAP", "data.validation: it changes how a trial is scored"),
        ({}, ["data.fold"], "val/mAP", "data.fold: it changes how a trial is scored"),
        ({}, ["data.folds"], "val/mAP", "data.folds: it changes how a trial is scored"),
        ({}, ["data.validate"], "val/mAP", "data.validate: it changes how a trial is scored"),
        ({}, ["evaluation.flip"], "val/mAP", "evaluation.flip: it changes how a trial is scored"),
        ({}, ["loss.identity"], "train/loss", "loss.identity: it scales the objective train/loss itself"),
        (
            {"method": "static"},
            ["alignment.noise"],
            "val/mAP",
            "alignment.noise: it has no effect on method static",
        ),
        (
            {"method": "sequence"},
            ["rnn.layers", "alignment.length"],
            "val/mAP",
            "alignment.length: it has no effect on method sequence",
        ),
    ],
)
def test_check_search_path_that_makes_no_sense_is_refused(tiny, changes, paths, metric, line):
    with pytest.raises(DataError, match=f"^{line}"):
        AlignmentTrainable().check_search(tiny(**changes), paths, [metric])


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({}, ["alignment.weights.pseudo", "loss.identity", "rnn.cell", "data.height", "data.images"]),
        ({"method": "static"}, ["alignment.length", "alignment.weights.pseudo"]),
        ({"method": "sequence"}, ["method", "alignment.length"]),
    ],
)
def test_check_search_other_paths_are_accepted(tiny, changes, paths):
    AlignmentTrainable().check_search(tiny(**changes), paths, ["val/mAP"])


MORE = {"layout": "ilids-vid", "generate": {"identities": 12, "frames": 4, "seed": 5}}
CROSS = {"data": {"validate": ["others", "more"], "sets": {"more": MORE}}}
"""Validation on two sets besides the one that trains; the test part of one of them is a target."""


def test_metrics_for_names_the_sets_that_validate(tiny):
    added = AlignmentTrainable().metrics_for(tiny(**CROSS)).keys() - AlignmentTrainable.metrics.keys()
    kinds = ("rank1", "rank5", "mAP", "mINP")
    assert added == {
        *(f"val/{name}/{kind}" for name in ("others", "more") for kind in kinds),
        *("val/cross/rank1", "val/cross/mAP"),
    }
    assert AlignmentTrainable().metrics_for(tiny()) == AlignmentTrainable.metrics


def test_fit_reports_scores_of_the_sets_that_validate(tiny, prepared, tmp_path):
    config = tiny(epochs=1, **CROSS)
    prepared.prepare(config)
    prepared.check(config, workers=1, metrics=["val/cross/mAP"])
    recorder = Recorder(tmp_path / "run", metrics=PSEUDO_METRICS)
    prepared.fit(config, recorder)
    (report,) = recorder.reports
    errors = {name for name in report if name.endswith("/error")}
    scores = {name for name in report if name.startswith("val/")} - errors
    assert scores == {name for name in prepared.metrics_for(config) if name.startswith("val/")}
    assert errors == {f"{name}/error" for name in scores - set(PSEUDO_METRICS)}
    assert report["val/cross/mAP"] == pytest.approx((report["val/others/mAP"] + report["val/more/mAP"]) / 2)


def test_cross_scores_remain_without_own_validation(tiny, prepared):
    config = tiny(**merged(CROSS, {"data": {"validation": 0}}))
    prepared.check(config, workers=1, metrics=["val/cross/mAP", "val/more/rank1"])


def test_prepare_records_the_sets_that_validate(tiny, prepared):
    (record,) = (
        each for each in prepared.prepare(tiny(**CROSS)) if (each.role, each.name) == ("validate", "more")
    )
    assert record.counts["validation identities"] == 6


@pytest.fixture
def poisoned(monkeypatch):
    """Return a function that makes the frames of all test identities of a config unreadable."""
    read = Pack.frames

    def poison(config):
        tests = {}
        for name in config.data.targets:
            pack = resolve(config.data, name)
            split = pack.splits[min(config.data.split, len(pack.splits) - 1)]
            held = np.isin(pack.identities, pack.identities[[*split.query, *split.gallery]])
            tests[pack.digest] = set(np.flatnonzero(held).tolist())

        def frames(self, tracklet, indices=None):
            assert int(tracklet) not in tests.get(self.digest, ()), f"{self.name}: a test identity is read"
            return read(self, tracklet, indices)

        monkeypatch.setattr(Pack, "frames", frames)

    return poison


def test_nothing_before_the_evaluation_reads_test_identities(tiny, prepared, poisoned, tmp_path):
    config = tiny(epochs=1, **CROSS)
    assert "others" in config.data.targets and "walkers" in config.data.targets
    prepared.prepare(config)
    poisoned(config)
    subject, recorder = AlignmentTrainable(), Recorder(tmp_path / "run", metrics=("model/milliseconds",))
    subject.check(config, workers=1, metrics=["val/cross/mAP"])
    subject.prepare(config)
    subject.fit(config, recorder)
    assert recorder.reports
    with pytest.raises(AssertionError, match="a test identity is read"):
        subject.evaluate(config, recorder.restore())


def test_validation_identities_are_in_no_other_part(tiny, prepared, tmp_path):
    config = tiny(**CROSS)
    prepared.prepare(config)
    training = prepared.training(config, Recorder(tmp_path))
    for name, (query, gallery) in training.others.items():
        validating = {(name, str(identity)) for identity in (*query.identities, *gallery.identities)}
        assert validating
        assert not validating & identities_tested(config, name)
        assert not validating & (drawn(training.batches.sequences) | drawn(training.batches.images))


def test_milliseconds_are_reported_where_the_job_needs_them(tiny, prepared, tmp_path):
    config = tiny(epochs=2)
    recorder = Recorder(tmp_path / "plain")
    prepared.fit(config, recorder)
    assert all("model/milliseconds" not in report for report in recorder.reports)
    needing = Recorder(tmp_path / "needing", metrics=("model/milliseconds",), stop_after=1)
    with pytest.raises(InterruptedTrialError):
        prepared.fit(config, needing)
    resumed = Recorder(tmp_path / "needing", metrics=("model/milliseconds",))
    prepared.fit(config, resumed)
    first, second = needing.reports[0], resumed.reports[0]
    assert first["model/milliseconds"] == second["model/milliseconds"] > 0  # measured once
    assert first["model/parameters"] == second["model/parameters"] > 0


def test_training_imports_no_plotting():
    program = "import sys; import trainables.alignment; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", done.stderr
