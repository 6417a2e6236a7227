"""Disturbances are shared by the frames of a sequence, and by the frames and their flow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.augmentation import AugmentationConfig, StandardAugmentation, shift_and_mirror

STILL = np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)
FRAMES = np.repeat(STILL[None], 5, axis=0)
EVERYTHING = AugmentationConfig(crop=0.25, flip=True, erase=1.0)


def disturbed(number, *, config=EVERYTHING, frames=FRAMES, flow=None, seed=(0, 1)):
    return StandardAugmentation(config, seed)(frames, flow, number)


def test_augmentation_is_the_same_for_all_frames():
    for number in range(20):
        frames, _ = disturbed(number)
        assert frames.shape == FRAMES.shape and frames.dtype == np.uint8
        assert (frames == frames[:1]).all()


def test_augmentation_depends_on_seed_and_number_alone():
    augmentation = StandardAugmentation(EVERYTHING, (0, 1))
    augmentation(FRAMES, None, 3)
    np.testing.assert_array_equal(augmentation(FRAMES, None, 7)[0], disturbed(7)[0])
    assert (disturbed(7)[0] != disturbed(8)[0]).any()
    assert (disturbed(7)[0] != disturbed(7, seed=(0, 2))[0]).any()


def test_augmentation_switched_off_changes_nothing():
    off = AugmentationConfig(crop=0, flip=False, erase=0)
    np.testing.assert_array_equal(disturbed(0, config=off)[0], FRAMES)


def test_shift_is_bounded_and_repeats_the_border():
    columns = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None], (1, 16, 12, 3))
    config = AugmentationConfig(crop=0.5, flip=False)
    seen = set()
    for number in range(200):
        row = disturbed(number, config=config, frames=columns)[0][0, 0, :, 0].astype(int)
        shift = next(s for s in range(-3, 4) if (np.clip(np.arange(12) + s, 0, 11) == row).all())
        seen.add(shift)
    assert seen == set(range(-3, 4))


@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_flip_mirrors_frames_and_flow_with_its_sign(erase):
    config = AugmentationConfig(crop=0, flip=True, erase=erase)
    flow = np.random.default_rng(1).normal(size=(5, 16, 12, 2)).astype(np.float32)
    original, mirrored = flow.copy(), 0
    for number in range(40):
        frames, moved = disturbed(number, config=config, flow=flow)
        kept = moved.any(axis=(0, 3))  # the pixels that no rectangle blanked
        if (frames[:, kept] == FRAMES[:, kept]).all():
            np.testing.assert_array_equal(moved[:, kept], original[:, kept])
        else:
            mirrored += 1
            np.testing.assert_array_equal(frames[:, kept], FRAMES[:, :, ::-1][:, kept])
            np.testing.assert_array_equal(moved[:, kept], (original[:, :, ::-1] * [-1, 1])[:, kept])
        assert kept.all() == (erase == 0)
    assert 5 < mirrored < 35
    np.testing.assert_array_equal(flow, original)


@given(st.integers(-15, 15), st.integers(-11, 11), st.booleans())
def test_shift_and_mirror_equals_index_arrays(down, right, mirrored):
    rows, columns = (np.arange(16) + down).clip(0, 15)[:, None], (np.arange(12) + right).clip(0, 11)
    columns = columns[::-1] if mirrored else columns
    flow = FRAMES[..., :2] - np.float32(7.3)
    original = FRAMES.copy(), flow.copy()
    frames, moved = shift_and_mirror(FRAMES, flow, down, right, mirrored)
    np.testing.assert_array_equal(frames, FRAMES[:, rows, columns])
    np.testing.assert_array_equal(moved, flow[:, rows, columns] * [-1 if mirrored else 1, 1])
    frames[:], moved[:] = 0, 0
    np.testing.assert_array_equal(FRAMES, original[0])
    np.testing.assert_array_equal(flow, original[1])


def test_erase_paints_the_mean_rounded_down():
    noise = np.random.default_rng(2).integers(0, 256, (5, 16, 12, 3), dtype=np.uint8)
    config = AugmentationConfig(crop=0, flip=False, erase=1.0)
    for number in range(20):
        frames, flow = disturbed(
            number, config=config, frames=noise, flow=np.ones((5, 16, 12, 2), np.float32)
        )
        erased = ~flow.any(axis=(0, 3))
        assert erased.any()
        assert (frames[:, erased] == noise.mean(axis=(0, 1, 2)).astype(np.uint8)).all()
