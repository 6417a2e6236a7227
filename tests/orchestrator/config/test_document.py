"""The reading of YAML, and values that replace those of the file."""

from pathlib import Path

import pytest

from orchestrator.config.document import Document, Override, flatten, plain


@pytest.fixture
def document(tmp_path: Path) -> Document:
    file = tmp_path / "file.yaml"
    file.write_text("name: a\nsearch: {a.b: {int: [1, 2]}}\nenqueue: {v1.2: {x: 1}}\n")
    return Document.read(file, path_sections={"search": 1, "enqueue": 2})


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("config.a.b=1", "config", {"a": {"b": 1}}),
        ("search.c.d=1", "search", {"a.b": {"int": [1, 2]}, "c.d": 1}),
        ("search.a.b.int=[3, 4]", "search", {"a.b": {"int": [3, 4]}}),
        ("enqueue.v1.2.a.b=3", "enqueue", {"v1.2": {"x": 1, "a.b": 3}}),
        ("enqueue.v2.a.b=3", "enqueue", {"v1.2": {"x": 1}, "v2": {"a.b": 3}}),
        ("splits.a.b=[1]", "splits", {"a": {"b": [1]}}),
        ("sampler.my.samplers:Mine.seed=3", "sampler", {"my.samplers:Mine": {"seed": 3}}),
    ],
)
def test_set_dotted_path_respects_keys_with_dots(
    document: Document, override: str, section: str, expected: object
) -> None:
    document.set(Override.parse(override))
    assert document.tree[section] == expected


def test_location_of_override_is_its_text(document: Document) -> None:
    document.set(Override.parse("search.a.b.int=[3, 4]"))
    assert document.location(("search", "a.b", "int", 0)) == "--set search.a.b.int=[3, 4]"


def test_location_of_absent_key_is_that_of_its_section(document: Document) -> None:
    assert document.location(("search", "a.b", "step")).endswith("file.yaml:2")


def test_flatten_nested_mapping_gives_dotted_paths() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_plain_text_that_is_not_yaml_is_itself() -> None:
    assert plain("[1") == "[1"


def test_plain_text_of_a_number_is_a_number() -> None:
    assert plain("1e-3") == 0.001
