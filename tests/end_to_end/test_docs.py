"""The documentation: every command is run here, run by ``.ci/run``, or marked as not run with the reason.

A comment in the line before a block says what happens to it:

- ``<!-- ci: NAME -->``: ``.ci/run`` runs the commands.
- ``<!-- run: NAME -->``: this test runs them in the checkout, with a new home.
- ``<!-- run: tests/FILE.py -->``: that test runs them. The comment ``<!-- test: NAME -->`` before names the
  block for it.
- ``<!-- not run: REASON -->``: they are not run.
- ``<!-- example: sweep -->``, ``<!-- example: comparison -->``: a complete file.
- ``<!-- fragment: of sweep -->``, ``<!-- fragment: of comparison -->``: sections that replace those of the
  complete file in ``search_spaces/README.md``; ``config`` is merged.
- ``<!-- example: KIND -->`` before Python: a copy of a file in ``tests/support/examples``, which has tests.

``tests/infra/test_guides.py`` compares the guides of ``infra/`` with the recipes.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
import yaml

from orchestrator.config.comparison import read_comparison
from orchestrator.config.sweep import read_sweep
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from tests.support import examples
from tests.support.paths import EXAMPLES as EXAMPLE_FILES
from tests.support.paths import ROOT

FOLDERS = ("", ".github/", "infra/**/", "orchestrator/**/", "search_spaces/", "tests/**/", "trainables/**/")
GUIDES = sorted({str(path.relative_to(ROOT)) for folder in FOLDERS for path in ROOT.glob(f"{folder}*.md")})
READERS = {"sweep": read_sweep, "comparison": read_comparison}
ENVIRONMENT = {"REID_DATA": "/data"}

FENCE = re.compile(
    r"""
    (?:^\ *<!--\ test:\ (?P<test_name>[^\n]+)\ -->\n)?
    (?:^\ *<!--\ (?P<mark>ci|run|not\ run|example|fragment):\ (?P<name>[^\n]+)\ -->\n)?
    ^(?P<indent>\ *)(?P<fence>```)(?P<language>[a-z]*)\n
    (?P<text>.*?)
    ^(?P=indent)```$
    """,
    re.M | re.S | re.X,
)
"""A fenced block with the comments before it."""


class Block(NamedTuple):
    """A fenced block of a guide."""

    guide: str
    line: int
    language: str
    mark: str
    """Of the comment before it: ``run``, ``not run``, ``example``, ...; empty without a comment."""
    name: str
    """What follows the mark."""
    test_name: str
    """Name by which a test elsewhere finds the block."""
    text: str

    def __str__(self) -> str:
        return f"{self.guide}:{self.line}"


def read_blocks(guide: str) -> list[Block]:
    """Return the fenced blocks of a guide."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(text):
        mark, name = match["mark"] or "", match["name"] or ""
        line = text.count("\n", 0, match.start("fence")) + 1
        content = textwrap.dedent(match["text"])
        blocks.append(Block(guide, line, match["language"], mark, name, match["test_name"] or "", content))
    return blocks


BLOCKS = [block for guide in GUIDES for block in read_blocks(guide)]
COMMANDS = [block for block in BLOCKS if block.language in ("sh", "bash")]
RUN = [block for block in COMMANDS if block.mark == "run" and not block.name.startswith("tests/")]
RUN_ELSEWHERE = [block for block in COMMANDS if block.mark == "run" and block.name.startswith("tests/")]
FILES = [block for block in BLOCKS if block.language == "yaml"]
EXAMPLES = {
    block.name: yaml.safe_load(block.text)
    for block in FILES
    if block.mark == "example" and block.guide == "search_spaces/README.md"
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new home with the folder of a sweep that was interrupted."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = read_sweep(ROOT / "search_spaces" / "alignment.yaml")
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()):
        study = SearchStudy(sweep, directory)
        study.seed([])
        for _ in range(4):
            study.ask()
    (tmp_path / "tmp").mkdir()  # which replaces /tmp in commands
    return tmp_path


def commands_once() -> list[Block]:
    """Return one block of each text."""
    return list({re.sub(r"\s*#.*", "", block.text): block for block in RUN}.values())


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_command_block_says_who_runs_it(block: Block) -> None:
    assert block.mark in ("ci", "run", "not run"), f"{block}: no mark, or an unknown one, in the line before"


@pytest.mark.parametrize("block", RUN_ELSEWHERE, ids=str)
def test_command_block_is_used_by_the_test_it_names(block: Block) -> None:
    (test,) = re.findall(r"^tests/[\w/]+\.py", block.name)
    assert block.test_name and f'"{block.test_name}"' in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES)
def test_block_has_a_language(guide: str) -> None:
    assert [str(block) for block in read_blocks(guide) if not block.language] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_block_is_tested_or_not_run(block: Block) -> None:
    example_texts = [file.read_text(encoding="utf-8") for file in EXAMPLE_FILES.glob("my_*.py")]
    assert block.mark == "not run" or (block.mark == "example" and block.text in example_texts)


@pytest.mark.parametrize("guide", GUIDES)
def test_code_that_guide_names_exists(guide: str) -> None:
    text = (ROOT / guide).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:orchestrator|trainables)(?:\.\w+)+(?::\w+)?)`", text):
        resolve_name(name)
    for path in re.findall(r"(?<![\w/.$-])[\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|yml|toml)\b", text):
        assert any((folder / path).exists() for folder in (ROOT, (ROOT / guide).parent)), path


def test_ci_runs_the_commands_marked_for_it() -> None:
    marked = {block.name for block in COMMANDS if block.mark == "ci" and block.guide == "README.md"}
    assert len(marked) == len([block for block in COMMANDS if block.mark == "ci"])
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    loop = re.search(r"for name in ([a-z ]+); do\s+command=\$\(readme_command", script)
    assert loop is not None and set(loop[1].split()) == marked


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("block", commands_once(), ids=str)
def test_command_block_runs(block: Block, home: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST"))}
    programs = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text.replace("/tmp/", f"{home}/tmp/")],
        cwd=ROOT,
        env={
            **inherited,
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", FILES, ids=str)
def test_yaml_block_is_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE_FILES))
    monkeypatch.setitem(sys.modules, "my_package", examples)
    monkeypatch.setenv("HOME", str(tmp_path))
    kind = block.name.removeprefix("of ")
    assert block.mark in ("example", "fragment") and kind in READERS, f"{block}: no mark in the line before"
    file = tmp_path / "file.yaml"
    file.write_text(block.text if block.mark == "example" else completed(kind, yaml.safe_load(block.text)))
    READERS[kind](file, environment=ENVIRONMENT)


def completed(kind: str, fragment: dict[str, Any]) -> str:
    """Return the complete example with the sections of a fragment."""
    sections = dict(EXAMPLES[kind])
    for key, value in fragment.items():
        sections[key] = merged(sections[key], value) if key in ("config", "search") else value
    return yaml.safe_dump(sections, sort_keys=False)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed; values that a fragment omits stay."""
    result = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], change) if both else change
    return result


@pytest.mark.parametrize("kind", READERS)
def test_complete_example_has_every_section(kind: str) -> None:
    optional = {"resources", "storage", "study", "tracking"}  # explained with the sweep file
    model: Any = READERS[kind].__annotations__["return"]
    missing = model.model_fields.keys() - EXAMPLES[kind].keys()
    assert missing <= (optional if kind == "comparison" else set())


@pytest.mark.parametrize("guide", GUIDES)
def test_links_of_guide_lead_somewhere(guide: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / guide).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / guide).parent / path if path else ROOT / guide
        assert file.exists(), f"{guide}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{guide}: {target} has no such heading"


def anchors(file: Path) -> set[str]:
    """Return the anchors of the headings of a Markdown file, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
