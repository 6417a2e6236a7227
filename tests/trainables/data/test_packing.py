"""Tests of packs: content, digest, unreadable frames and optical flow."""

import dataclasses
import logging
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from trainables.data import packing
from trainables.data.packing import Pack, pack
from trainables.data.tracklet import DataSet, Frame, Split, Tracklet
from trainables.errors import DataError
from trainables.network.flow import optical_flow


def texture(seed: int, height: int = 48, width: int = 24) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    """Six tracklets of 1 to 6 frames, of three identities in two cameras."""
    tracklets = []
    for number in range(6):
        frames = []
        for t in range(number + 1):
            path = tmp_path / f"{number}_{t}.png"
            Image.fromarray(texture(10 * number + t)).save(path)
            frames.append(Frame(path))
        tracklets.append(Tracklet(str(number // 2), str(number % 2), tuple(frames)))
    splits = (Split((0, 1), (2, 4), (3, 5)), Split((4, 5), (0, 2), (1, 3)))
    return DataSet("tiny", "sequence", tuple(tracklets), splits)


def packed(data_set: DataSet, name: str = "pack", **parameters: object) -> Pack:
    arguments = {"height": 32, "width": 16, "flow": "none", "unreadable": "stop", **parameters}
    folder = data_set.tracklets[0].frames[0].path.parent
    return pack(data_set, folder / f"{name}.arrow", **arguments)


def test_pack_has_frames_labels_and_splits(data_set: DataSet) -> None:
    result = packed(data_set, height=48, width=24)
    assert (result.name, result.kind, result.has_flow, len(result)) == ("tiny", "sequence", False, 6)
    assert result.identities.tolist() == ["0", "0", "1", "1", "2", "2"]
    assert result.cameras.tolist() == ["0", "1"] * 3
    assert result.lengths.tolist() == [1, 2, 3, 4, 5, 6]
    assert (result.splits, result.protocol) == (data_set.splits, "whole-gallery")
    for number in range(6):
        frames = result.frames(number)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, [texture(10 * number + t) for t in range(number + 1)])


def test_pack_resizing_equals_pillow_bilinear(data_set: DataSet) -> None:
    expected = Image.fromarray(texture(31)).resize((16, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(packed(data_set).frames(3, slice(1, 2))[0], np.asarray(expected))


def test_pack_in_many_batches_is_the_same(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(data_set, "whole", flow="dis")
    monkeypatch.setattr(packing, "_BATCH_BYTES", 1)
    cut = packed(data_set, "cut", flow="dis")
    assert cut.digest == whole.digest
    for number in range(6):
        np.testing.assert_array_equal(cut.frames(number), whole.frames(number))
        np.testing.assert_array_equal(cut.flow(number), whole.flow(number))


def test_frames_by_slice_are_a_view_by_index_a_copy(data_set: DataSet) -> None:
    result = packed(data_set)
    view, copy = result.frames(5, slice(1, 4)), result.frames(5, np.array([3, 1, 1]))
    assert np.shares_memory(view, result.frames(5))
    assert not view.flags.writeable
    assert copy.flags.writeable
    np.testing.assert_array_equal(copy, view[[2, 0, 0]])


def test_pack_pickled_opens_the_same_file(data_set: DataSet) -> None:
    result = Pack.open(packed(data_set).path, "another name")
    pickled = pickle.dumps(result)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again.name, again.digest) == ("another name", result.digest)
    np.testing.assert_array_equal(again.frames(4), result.frames(4))


def test_digest_after_moving_files_is_the_same(data_set: DataSet, tmp_path: Path) -> None:
    tracklets = []
    for tracklet in data_set.tracklets:
        frames = []
        for frame in tracklet.frames:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            frames.append(Frame(tmp_path / "elsewhere" / frame.path.with_suffix(".bmp").name))
            Image.open(frame.path).save(frames[-1].path)
        tracklets.append(dataclasses.replace(tracklet, frames=tuple(frames)))
    elsewhere = dataclasses.replace(data_set, tracklets=tuple(tracklets), name="moved")
    assert packed(elsewhere).digest == packed(data_set).digest


def test_digest_after_any_change_differs(data_set: DataSet) -> None:
    first, *rest = data_set.tracklets
    variants = [
        packed(data_set),
        packed(dataclasses.replace(data_set, tracklets=(dataclasses.replace(first, identity="9"), *rest))),
        packed(dataclasses.replace(data_set, tracklets=(dataclasses.replace(first, camera="9"), *rest))),
        packed(dataclasses.replace(data_set, splits=data_set.splits[:1])),
        packed(dataclasses.replace(data_set, protocol="mars")),
        packed(data_set, width=20),
        packed(data_set, flow="dis"),
    ]
    pixels = texture(0)
    pixels[20:30, 10:14] += 40
    Image.fromarray(pixels).save(first.frames[0].path)
    variants.append(packed(data_set))
    assert len({variant.digest for variant in variants}) == len(variants)


@pytest.fixture
def damaged(data_set: DataSet) -> DataSet:
    """A set in which one of several frames of a tracklet and the only frame of another are truncated."""
    for path in (data_set.tracklets[3].frames[2].path, data_set.tracklets[0].frames[0].path):
        path.write_bytes(path.read_bytes()[:200])
    return data_set


def test_pack_truncated_frame_stops_with_its_name(damaged: DataSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0_0\.png") as caught:
        packed(damaged)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*arrow*")) + list(tmp_path.glob(".*"))


def test_pack_under_a_name_that_is_not_utf8_is_refused(data_set: DataSet) -> None:
    with pytest.raises(DataError, match=r"a\\xe9\.arrow: the name is not UTF-8; rename it"):
        packed(data_set, os.fsdecode(b"a\xe9"))


def test_pack_that_fails_leaves_no_new_folder(damaged: DataSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0_0\.png"):
        packed(damaged, "new/deep/set")
    assert not (tmp_path / "new").exists()


def test_pack_skip_unreadable_counts_frames(damaged: DataSet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = packed(damaged, unreadable="skip")
    assert result.skipped == 2
    assert "2 unreadable frames" in caplog.messages[0]
    assert "0_0.png" in caplog.messages[0]
    assert result.lengths.tolist() == [2, 3, 3, 5, 6]
    np.testing.assert_array_equal(
        result.frames(2)[2], Image.fromarray(texture(33)).resize((16, 32), Image.Resampling.BILINEAR)
    )
    assert result.splits == (Split((0,), (1, 3), (2, 4)), Split((3, 4), (1,), (0, 2)))


def test_pack_without_readable_frames_is_refused(data_set: DataSet) -> None:
    for tracklet in data_set.tracklets:
        for frame in tracklet.frames:
            frame.path.write_bytes(b"")
    with pytest.raises(DataError, match="tiny: no readable frame in 6 tracklets"):
        packed(data_set, unreadable="skip")


def test_open_incomplete_pack_gives_one_clear_line(data_set: DataSet) -> None:
    path = packed(data_set).path
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"pack\.arrow: not a complete pack"):
        Pack.open(path)


def test_damaged_frame_or_flow_is_refused_when_it_is_read(data_set: DataSet) -> None:
    path = packed(data_set, flow="dis").path
    content = path.read_bytes()
    frames, flow = Pack.open(path).frames(5).copy(), Pack.open(path).flow(5)
    path = path.with_name("damaged.arrow")  # the mapped file must not change
    for values in (frames[2].tobytes(), flow[2].astype(np.float16).tobytes()):
        position = content.index(values) + 100
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        opened = Pack.open(path)
        with pytest.raises(
            DataError, match=r"damaged\.arrow: the packed frames are damaged; delete the file"
        ):
            (opened.frames(5), opened.flow(5))
        np.testing.assert_array_equal(opened.frames(5, slice(0, 2)), frames[:2])


def test_damaged_labels_are_refused(data_set: DataSet) -> None:
    path = packed(data_set).path
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"cameras": ["0", "1"', b'"cameras": ["1", "1"'))
    assert path.read_bytes() != content
    with pytest.raises(
        DataError, match=r"not a complete pack \(its table of tracklets is damaged\); delete it"
    ):
        Pack.open(path)


def test_pack_without_checksums_is_read(data_set: DataSet) -> None:
    """Packs of version 0.1.0 have none."""
    new = packed(data_set, flow="dis")
    old = new.path.with_name("old.arrow")
    reader = pa.ipc.open_file(str(new.path))
    schema = pa.schema([field for field in reader.schema if pa.types.is_fixed_size_binary(field.type)])
    with pa.OSFile(str(old), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for number in range(reader.num_record_batches):
            batch, metadata = reader.get_batch_with_custom_metadata(number)
            table = {} if metadata is None else {b"table": metadata[b"table"]}
            writer.write_batch(batch.select(schema.names), custom_metadata=table)
    assert Pack.open(old).digest == new.digest
    np.testing.assert_array_equal(Pack.open(old).frames(5), new.frames(5))
    np.testing.assert_array_equal(Pack.open(old).flow(5), new.flow(5))


def test_optical_flow_points_where_the_picture_moves() -> None:
    scene = texture(0, 100, 100)
    frames = np.stack([scene[20:84, 30 - 2 * t : 78 - 2 * t] for t in range(4)])
    flow = optical_flow(frames)
    assert flow.shape == (4, 64, 48, 2)
    inner = flow[:, 8:-8, 8:-8]
    np.testing.assert_allclose(np.median(inner, (0, 1, 2)), (2, 0), atol=0.1)
    np.testing.assert_array_equal(flow[3], flow[2])
    down = optical_flow(np.stack([scene[30:94, 20:68], scene[27:91, 20:68]]))
    np.testing.assert_allclose(np.median(down[:, 8:-8, 8:-8], (0, 1, 2)), (0, 3), atol=0.1)


def test_optical_flow_of_single_frame_is_zero() -> None:
    assert not optical_flow(texture(0)[None]).any()


def test_pack_flow_equals_flow_of_packed_frames(data_set: DataSet) -> None:
    result = packed(data_set, flow="dis")
    assert result.has_flow
    assert result.flow(5).dtype == np.float32
    np.testing.assert_allclose(result.flow(5), optical_flow(result.frames(5)), rtol=2e-3, atol=1e-2)
    np.testing.assert_array_equal(result.flow(5, np.array([4, 0])), result.flow(5)[[4, 0]])


def test_pack_flow_of_stills_is_zero(data_set: DataSet) -> None:
    stills = dataclasses.replace(
        data_set, kind="image", splits=(),
        tracklets=tuple(dataclasses.replace(t, frames=t.frames[:1]) for t in data_set.tracklets),
    )  # fmt: skip
    result = packed(stills, flow="dis")
    assert result.flow(2).shape == (1, 32, 16, 2)
    assert result.flow(2, np.array([0, 0])).shape == (2, 32, 16, 2)
    assert not result.flow(2).any()


def test_pack_flow_if_packed_without_is_refused(data_set: DataSet) -> None:
    with pytest.raises(ValueError, match="without optical flow"):
        packed(data_set).flow(0)
