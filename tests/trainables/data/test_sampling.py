"""Batches: balanced, repeatable, and the same however many workers share them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.sampling import IdentityOptions, IdentitySampler, evenly_spaced, share
from trainables.errors import DataError

SIDES = [(str(identity), str(camera)) for identity in range(10) for camera in range(3) for _ in range(2)]
IDENTITIES, CAMERAS = (np.asarray(column) for column in zip(*SIDES, strict=True))
TRACKLETS = np.arange(len(SIDES)) + 100


def sampler(lengths=20, per_batch=4, per_identity=2, frames=8, seed=(0,), clips="consecutive"):
    return IdentitySampler(
        TRACKLETS,
        IDENTITIES,
        CAMERAS,
        np.broadcast_to(lengths, len(SIDES)),
        per_batch=per_batch,
        per_identity=per_identity,
        frames=frames,
        seed=seed,
        options=IdentityOptions(clips=clips),
    )


def identity(clip):
    return IDENTITIES[clip.tracklet - 100]


@settings(max_examples=60)
@given(st.integers(2, 10), st.integers(1, 7), st.integers(1, 12), st.integers(0, 50))
def test_epoch_batch_has_p_identities_with_k_clips(p, k, batches, epoch):
    for clips in sampler(per_batch=p, per_identity=k).epoch(epoch, batches):
        counts = Counter(map(identity, clips))
        assert len(counts) == p
        assert set(counts.values()) == {k}
        for name in counts:
            drawn = [clip.tracklet - 100 for clip in clips if identity(clip) == name]
            assert len({CAMERAS[position] for position in drawn}) == min(k, 3)
            assert len(set(drawn)) == min(k, 6)


def test_epoch_one_pass_has_every_identity_once():
    drawn = sampler(per_batch=5)
    assert drawn.batches_per_pass() == 2
    shown = Counter(identity(clip) for clips in drawn.epoch(3, 2) for clip in clips)
    assert shown == dict.fromkeys(IDENTITIES, 2)
    ragged = sampler(per_batch=4)
    assert ragged.batches_per_pass() == 3
    assert {identity(c) for clips in ragged.epoch(3, 3) for c in clips} == set(IDENTITIES)


def test_clip_frames_are_consecutive_from_any_start():
    starts = set()
    for clips in sampler(lengths=11).epoch(0, 20):
        for clip in clips:
            assert clip.frames.tolist() == list(range(clip.frames[0], clip.frames[0] + 8))
            starts.add(int(clip.frames[0]))
    assert starts == {0, 1, 2, 3}


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(1, 200))
def test_clip_that_is_spread_has_a_frame_of_each_part(frames, length):
    drawn = sampler(lengths=length, frames=frames, clips="spread").clip(0, 0, np.random.default_rng(0)).frames
    assert drawn.shape == (frames,) and (drawn >= 0).all() and (drawn < length).all()
    if length > frames:
        parts = np.arange(frames) * length // frames
        assert (drawn >= parts).all() and (drawn[:-1] < parts[1:]).all()


def test_clip_short_tracklet_repeats():
    assert sampler(lengths=3).epoch(0, 1)[0][0].frames.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert sampler(lengths=1).epoch(0, 1)[0][0].frames.tolist() == [0] * 8


def plain(plan):
    return [[(clip.tracklet, clip.frames.tolist(), clip.number) for clip in clips] for clips in plan]


def test_epoch_depends_on_seed_and_epoch_alone():
    drawn = sampler()
    drawn.epoch(1, 3)
    assert plain(drawn.epoch(2, 3)) == plain(sampler().epoch(2, 3))
    assert plain(drawn.epoch(2, 3)) != plain(drawn.epoch(3, 3))
    assert plain(drawn.epoch(2, 3)) != plain(sampler(seed=(1,)).epoch(2, 3))


def test_epoch_numbers_clips_from_0():
    numbers = [clip.number for clips in sampler().epoch(0, 4) for clip in clips]
    assert numbers == list(range(4 * 4 * 2))


def test_share_of_workers_does_not_overlap():
    clips = sampler().epoch(0, 1)[0]
    assert plain([share(clips, 0, 2) + share(clips, 1, 2)]) == plain([clips])


def test_sampler_too_few_identities_names_both_numbers():
    line = "a batch of 11 identities needs at least as many training identities; there are 10"
    with pytest.raises(DataError, match=line):
        sampler(per_batch=11)


@pytest.mark.parametrize("available, count, expected", [(9, 3, [0, 4, 8]), (2, 5, [0, 1]), (5, 1, [0])])
def test_evenly_spaced_indices_include_both_ends(available, count, expected):
    assert evenly_spaced(available, count).tolist() == expected
