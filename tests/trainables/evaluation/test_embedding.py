"""Tests of the views of a test part, its features, and scores by protocol."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from trainables.data import sources
from trainables.data.augmentation import AugmentationConfig, StandardAugmentation
from trainables.data.loading import as_tensor
from trainables.data.parts import Part
from trainables.data.tracklet import LONGEST
from trainables.evaluation.embedding import (
    EvaluationConfig,
    View,
    embed,
    embed_sides,
    retrieve,
)
from trainables.evaluation.retrieval import Retrieval
from trainables.evaluation.scoring import RANKS
from trainables.network.embedder import NetworkConfig, SequenceEmbedder

CPU = torch.device("cpu")


def part(pack, tracklets):
    return Part(pack, np.asarray(tracklets, np.int64))


@pytest.fixture(scope="module")
def packs(tiny):
    """Packs with flow: two cameras with tracklets of 6 frames, MARS with 2 to 4, CUHK03 with testsets."""
    config = tiny(
        data={
            "sets": {
                "stills": {"layout": "cuhk03", "generate": {"identities": 20, "hdf5": True}},
                "walkers": {"generate": {"identities": 8}},
            },
            "flow": "dis",
        }
    )
    return {name: sources.resolve(config.data, name) for name in config.data.sets}


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    return SequenceEmbedder(NetworkConfig(height=32, width=16, flow="dis"))


def sides(pack):
    split = pack.splits[0]
    return part(pack, split.query), part(pack, split.gallery)


def embed_one(embedder, frames, flow):
    """Return the unit feature of one sequence."""
    with torch.inference_mode():
        return normalize(embedder.eval()(as_tensor(frames.copy(), flow)[None]))[0].numpy()


def test_views_lie_on_the_diagonal_of_training_shifts():
    def shifts(crops, crop=0.125):
        return [(v.down, v.right) for v in EvaluationConfig(crops=crops).views(crop, 64, 48)]

    assert shifts(1) == [(0, 0)]
    assert shifts(5) == [(-4, -3), (-2, -2), (0, 0), (2, 2), (4, 3)]
    assert len(shifts(8)) == 8 and shifts(8)[0] == (-4, -3) and shifts(8)[-1] == (4, 3)
    assert shifts(8, crop=0.03) == [(-1, -1), (0, 0), (1, 1)]
    flipped = EvaluationConfig(crops=5, flip=True).views(0.125, 64, 48)
    assert len(flipped) == 10 and sum(view.mirrored for view in flipped) == 5


def test_views_are_among_those_of_training(packs):
    pack = packs["walkers"]
    frames, flow = pack.frames(0), pack.flow(0)
    training = StandardAugmentation(AugmentationConfig(crop=0.25), seed=(0,))
    draws = [training(frames, flow, number) for number in range(600)]
    for view in EvaluationConfig(crops=5, flip=True).views(0.25, pack.height, pack.width):
        moved, motion = view(frames, flow)
        assert any(np.array_equal(moved, one) and np.array_equal(motion, other) for one, other in draws), view
    np.testing.assert_array_equal(frames, pack.frames(0))
    np.testing.assert_array_equal(View()(frames, flow)[1], flow)
    assert np.abs(flow[..., 0]).max() > 0.1


def test_embed_feature_is_the_mean_of_its_views(packs, embedder):
    pack = packs["walkers"]
    config = EvaluationConfig(crops=3, flip=True)
    query, gallery = sides(pack)
    features, _ = embed_sides(embedder, query, gallery, CPU, config, crop=0.25)
    tracklet = query.tracklets[1]
    per_view = [
        embed_one(embedder, *view(pack.frames(tracklet), pack.flow(tracklet)))
        for view in config.views(0.25, pack.height, pack.width)
    ]
    assert len(per_view) == 6 and not np.allclose(per_view[0], per_view[1], atol=1e-4)
    mean = np.mean(per_view, axis=0)
    np.testing.assert_allclose(features[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_embed_k_frames_uses_first_of_query_last_of_gallery(packs, embedder):
    pack = packs["others"]
    query, gallery = sides(pack)
    both = np.flatnonzero(np.isin(gallery.tracklets, query.tracklets) & (gallery.lengths == 4))
    position = both[0]
    tracklet = gallery.tracklets[position]
    probe = int(np.flatnonzero(query.tracklets == tracklet)[0])
    frames, flow = pack.frames(tracklet), pack.flow(tracklet)
    for k, config in (
        (3, EvaluationConfig(frames=3)),
        (4, EvaluationConfig(frames=100)),
        (4, EvaluationConfig()),
    ):
        first, last = embed_sides(embedder, query, gallery, CPU, config)
        np.testing.assert_allclose(first[probe], embed_one(embedder, frames[:k], flow[:k]), atol=1e-5)
        np.testing.assert_allclose(last[position], embed_one(embedder, frames[-k:], flow[-k:]), atol=1e-5)
    assert not np.allclose(
        embed_one(embedder, frames[:3], flow[:3]), embed_one(embedder, frames[1:], flow[1:]), atol=1e-4
    )


def evaluate(embedder, query, gallery, crop=0.0):
    return Retrieval.of(embedder, query, gallery, CPU, EvaluationConfig(), crop=crop).scores


def test_evaluate_embeds_every_tracklet_once(packs, embedder, monkeypatch):
    pack = packs["others"]
    query, gallery = sides(pack)
    parts = []
    monkeypatch.setattr(
        "trainables.evaluation.embedding.embed",
        lambda embedder, part, *rest, **more: parts.append(part) or embed(embedder, part, *rest, **more),
    )
    assert list(evaluate(embedder, query, gallery)) == ["", "common/"]
    assert len(parts) == 1 and parts[0].tracklets.tolist() == sorted({*query.tracklets, *gallery.tracklets})


def test_evaluate_two_camera_set_equals_validation(packs, embedder):
    query, gallery = sides(packs["walkers"])
    scores = evaluate(embedder, query, gallery, crop=0.125)
    assert list(scores) == [""]
    assert scores[""].metrics("") == retrieve(embedder, query, gallery, CPU).metrics("")


def test_evaluate_scores_by_the_protocol_of_the_set(packs, embedder):
    assert {name: pack.protocol for name, pack in packs.items()} == {
        "walkers": "whole-gallery",
        "others": "mars",
        "stills": "single-gallery-shot",
    }
    query, gallery = sides(packs["stills"])
    scores = evaluate(embedder, query, gallery)
    assert list(scores[""].metrics("")) == [f"rank{rank}" for rank in RANKS]
    assert scores[""].queries == len(query.tracklets) == 20
    assert scores[""].curve[9] == 1 > scores[""].curve[0]  # 10 identities: each draw ranks 10 items


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"frames": LONGEST + 1}, {"crops": 0}, {"flips": True}])
def test_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        EvaluationConfig(**wrong)
