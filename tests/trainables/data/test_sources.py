"""From a set of a config to its pack: built once, shared, and every fault in one line."""

import logging
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.data_configs import SETS, data_config, with_set
from trainables.data.config import DataConfig
from trainables.data.sources import resolve
from trainables.data.splits import check
from trainables.data.walkers import layouts
from trainables.errors import DataError

NOBODY = 65534
"""Number of a user without rights."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the layout of PRID 2011, as a user would have it."""
    chosen = layouts.GenerateConfig(identities=8, frames=2)
    layouts.write("prid2011", tmp_path / "prid", chosen)
    return tmp_path / "prid"


def test_resolve_all_returns_a_pack_of_every_set(tmp_path: Path) -> None:
    chosen = data_config(tmp_path)
    check(chosen)
    assert not (tmp_path / "cache").exists()
    for name, kind in (("walkers", "sequence"), ("walkers-stills", "image"), ("walkers-b", "sequence")):
        pack = resolve(chosen, name)
        assert (pack.name, pack.kind, pack.height, pack.width) == (name, kind, 32, 16)


def test_resolve_again_under_another_name_reuses_the_pack(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = resolve(data_config(tmp_path), "walkers")
    assert "packed 16 tracklets of 8 identities, 32 frames" in caplog.messages[-1]
    built = first.path.stat().st_mtime_ns
    renamed = data_config(tmp_path, sets={"same": SETS["walkers"]}, sequences="same", images=[], targets=[])
    again = resolve(renamed, "same")
    assert caplog.messages[-1].startswith("same: reused")
    assert (again.path, again.digest, again.name) == (first.path, first.digest, "same")
    assert again.path.stat().st_mtime_ns == built


def test_resolve_changed_source_or_parameters_packs_again(tmp_path: Path, folder: Path) -> None:
    def path(**fields: Any) -> Path:
        chosen = with_set(tmp_path, layout="prid2011", folder=folder, **fields)
        return resolve(chosen, "real").path

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
def test_resolve_incomplete_cache_is_rebuilt(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = data_config(tmp_path)
    pack = resolve(chosen, "walkers")
    whole = pack.digest
    pack.path.write_bytes(pack.path.read_bytes()[:5000])
    if damage == "set":
        [generated] = (tmp_path / "cache" / "generated").glob("prid2011-*[!k]")
        (generated / layouts.MARKER).unlink()
        (generated / "multi_shot/cam_a/person_0001/0001.png").unlink()
    caplog.clear()
    caplog.set_level(logging.INFO)
    assert resolve(chosen, "walkers").digest == whole
    assert any("packed" in line for line in caplog.messages)


def _resolve(chosen: DataConfig, lines: Any) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[QueueHandler(lines)])
    lines.put(resolve(chosen, "walkers").digest)


def test_resolve_in_two_processes_builds_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    lines: Any = spawn.Queue()
    both = [spawn.Process(target=_resolve, args=(data_config(tmp_path), lines)) for _ in range(2)]
    for process in both:
        process.start()
    digests: list[str] = []
    logged: list[str] = []
    while len(digests) < 2:
        item = lines.get(timeout=60)
        if isinstance(item, logging.LogRecord):
            logged.append(item.getMessage())
        else:
            digests.append(item)
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(set(digests)) == 1
    assert sum("generated" in line and "walkers in the layout" in line for line in logged) == 1
    assert sum("packed" in line for line in logged) == 1
    assert sum("reused" in line for line in logged) == 1


def test_resolve_cache_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chosen = data_config(tmp_path, cache=tmp_path / "file" / "cache")
    for call in (lambda: check(chosen), lambda: resolve(chosen, "walkers")):
        with pytest.raises(DataError, match=r"^data\.cache: .*file/cache.* cannot be written") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder_of_ordinary_user() -> Iterator[Path]:
    """Run the test as a user who is bound by permissions, and yield a folder of this user."""
    was_root = os.geteuid() == 0
    if was_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        if was_root:
            os.setresuid(0, 0, 0)


@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["not writable", "not accessible"])
def test_check_cache_without_permission_is_refused(folder_of_ordinary_user: Path, mode: int) -> None:
    locked = folder_of_ordinary_user / "locked"
    locked.mkdir(mode=mode)
    chosen = data_config(folder_of_ordinary_user, cache=locked / "cache")
    for call in (lambda: check(chosen), lambda: resolve(chosen, "walkers")):
        with pytest.raises(DataError, match=r"^data\.cache: .*locked/cache.*another folder") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = data_config(tmp_path, cache=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("REID_CACHE", raising=False)
    assert chosen.cache_folder == tmp_path / "xdg" / "multi-shot-reid"
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "mine"))
    assert chosen.cache_folder == tmp_path / "mine"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"layout": "prid2011", "folder": "/nowhere"}, r"data\.sets\.real\.folder: /nowhere: no such folder"),
        (
            {"layout": "sequences", "generate": {}},
            r"data\.sets\.real\.generate: layout 'sequences' cannot be",
        ),
        ({"layout": "mars", "generate": {"hdf5": True}}, r"data\.sets\.real\.generate: hdf5: mars has no"),
    ],
)
def test_set_config_invalid_field_is_named(fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    for call in (check, lambda chosen: resolve(chosen, "real")):
        with pytest.raises(DataError, match=f"^{line}"):
            call(with_set(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "field", "line"),
    [
        ({"layout": "prid"}, "layout", "no layout 'prid'; did you mean 'prid2011'"),
        ({"layout": "nowhere:Reader"}, "layout", "layout 'nowhere:Reader': cannot import 'nowhere'"),
        (
            {"layout": "prid2011", "options": {"minimum_frame": 2}},
            "options",
            "option minimum_frame: no such option; did you mean 'minimum_frames'? options:"
            " minimum_frames, seed",
        ),
        (
            {"layout": "prid2011", "options": {"minimum_frames": 0}},
            "options.minimum_frames",
            "Input should be greater than or equal to 1",
        ),
    ],
    ids=["layout", "module", "option", "value"],
)
def test_set_config_unknown_layout_or_option_is_named(
    fields: dict[str, Any], field: str, line: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError) as caught:
        with_set(tmp_path, folder="/x", **fields)
    [error] = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == f"sets.real.{field}"
    assert error["msg"].removeprefix("Value error, ").startswith(line)


def test_set_config_options_survive_json(tmp_path: Path) -> None:
    chosen = with_set(tmp_path, layout="prid2011", folder="/x", options={"minimum_frames": "2"})
    assert chosen.model_dump(mode="json")["sets"]["real"]["options"] == {"minimum_frames": 2, "seed": 0}
    assert DataConfig.model_validate(chosen.model_dump(mode="json")) == chosen


def test_resolve_empty_folder_or_lost_camera_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data\.sets\.real\.folder: .*empty: the folder is empty"):
        check(with_set(tmp_path, layout="prid2011", folder=tmp_path / "empty"))
    (folder / "multi_shot/cam_b/person_0003").rename(tmp_path / "person_0003")
    with pytest.raises(DataError, match=r"^data\.sets\.real\.folder: .*person_0003 are only in cam_a"):
        check(with_set(tmp_path, layout="prid2011", folder=folder))


def test_resolve_unreadable_frame_names_set_and_file(tmp_path: Path, folder: Path) -> None:
    (folder / "multi_shot/cam_a/person_0001/0001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"^data\.sets\.real: .*person_0001/0001\.png"):
        resolve(with_set(tmp_path, layout="prid2011", folder=folder), "real")


@pytest.mark.parametrize("target", ["/nowhere", "0001.png"])
def test_resolve_link_to_no_file_is_named_or_skipped(target: str, tmp_path: Path, folder: Path) -> None:
    frame = folder / "multi_shot/cam_a/person_0001/0001.png"
    frame.unlink()
    frame.symlink_to(target)
    config = with_set(tmp_path, layout="prid2011", folder=folder)
    with pytest.raises(DataError, match=rf"^data\.sets\.real: {frame}: a link to {target}, which is no file"):
        resolve(config, "real")
    assert resolve(config.model_copy(update={"unreadable": "skip"}), "real").skipped == 1


def test_set_config_requires_exactly_one_source(tmp_path: Path) -> None:
    for fields in ({}, {"folder": "/x", "generate": {}}):
        with pytest.raises(ValidationError, match="exactly one of folder and generate"):
            with_set(tmp_path, layout="mars", **fields)
