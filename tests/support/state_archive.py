"""Archives of the state that a version of the orchestrator left, without paths of the machine.

``python -m tests.support.state_archive FOLDER ARCHIVE`` packs a folder with sweep files and their storage.
The path of the folder is replaced when it is packed, and again when a test unpacks it.
"""

import argparse
import os
import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from shutil import copytree, ignore_patterns

PLACEHOLDER = "/ARCHIVED-STATE"
"""Replaces the path of the folder in every file of an archive."""

_UNUSED = ("*.lock", "*.log", "*.sh", "report.html", "requirements.txt", "*.png", ".validate_storage_marker")
"""Files that no command reads again; the requirements of a model are in its other files."""

_DRIVER_HOST = re.compile(rb'"host": "[^"]*"|(?<="identity": ")[^:]*')


def pack(folder: Path, archive: Path, paths: Sequence[str] = ()) -> None:
    """Write an archive of a folder, without its path and without other ``paths`` of the machine."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "state"
        copytree(folder, copy, ignore=ignore_patterns(*_UNUSED))
        for record in copy.glob("storage/.*.driver.json"):
            record.write_bytes(_DRIVER_HOST.sub(_anonymous, record.read_bytes()))
        for path in (str(folder), *paths):
            replace_text(copy, path, PLACEHOLDER)
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(copy, ".", filter=_without_owner)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    replace_text(folder, PLACEHOLDER, str(folder))


def replace_text(folder: Path, old: str, new: str) -> None:
    """Replace a text in all files of a folder, in SQLite databases value by value."""
    for file in folder.rglob("*"):
        if file.suffix == ".db":
            with closing(sqlite3.connect(file)) as database:
                _replace_in_database(database, old, new)
        elif file.is_file():
            content = file.read_bytes()
            if old.encode() in content:
                file.write_bytes(content.replace(old.encode(), new.encode()))


def _replace_in_database(database: sqlite3.Connection, old: str, new: str) -> None:
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for column in [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]:
            database.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                f'WHERE typeof("{column}") = \'text\' AND instr("{column}", ?)',
                (old, new, old),
            )
    database.commit()
    database.execute("VACUUM")  # deleted text stays in the file otherwise


def _anonymous(match: re.Match[bytes]) -> bytes:
    return b'"host": "elsewhere"' if match[0].startswith(b'"host"') else b"elsewhere"


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Pack a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--path", action="append", default=[], help="another path of this machine")
    parsed = parser.parse_args()
    pack(Path(os.path.abspath(parsed.folder)), parsed.archive, parsed.path)


if __name__ == "__main__":
    main()
