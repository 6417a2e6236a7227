"""YAML as a document: plain values, and for each the place where the user wrote it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator import errors
from orchestrator.errors import Fault, FieldError, InputError, nearest, show

_MOST_BYTES = 1 << 18
_MOST_LEVELS = 32
_ABOVE_PATHS = {"search": 1, "splits": 1, "variants": 2, "enqueue": 2}
"""Sections that map paths of the config, and how many keys stand above such a path."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Override(NamedTuple):
    """One value laid over the file; ``origin`` is how the user wrote it (e.g. ``--trials 3``)."""

    path: str
    value: Any
    origin: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read ``path=value`` of ``--set``; the value is YAML. Raises InputError."""
        path, equals, value = text.partition("=")
        origin = f"--set {text}"
        if not equals or not path.strip():
            raise InputError(f"{origin}: write --set path=value, for example --set config.epochs=3")
        return cls(path.strip(), _parse(value, origin, {}), origin)


class Document:
    """The values of a file, and for each path the place that it came from."""

    def __init__(self, file: str, tree: dict[str, Any], places: dict[errors.Path, str]) -> None:
        """Hold the tree of values and the places (``FILE:LINE``) of its paths."""
        self.file = file
        self.tree = tree
        self._places = places

    @classmethod
    def read(cls, path: Path, kind: str = "sweep") -> "Document":
        """Read a YAML file of a ``kind``. Raises InputError naming file and line.

        Refused are aliases (they expand without bound), tags (they may run code), keys given twice, several
        documents in a file, deep nesting, large files and undecodable bytes. Plain scalars follow YAML 1.2:
        ``1e-3`` is a number, ``no`` is a word.
        """
        text = _text(path, kind)
        places: dict[errors.Path, str] = {}
        tree = _parse(text, str(path), places)
        if tree is None:
            raise InputError(f"{path}: the file is empty")
        if not isinstance(tree, dict):
            raise InputError(
                f"{path}:1: the file holds {show(tree)}; a {kind} file is a mapping of keys to values"
            )
        return cls(str(path), tree, places)

    def place(self, path: errors.Path) -> str:
        """Say where a path was written: its own line, or that of the nearest key around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._places:
                return self._places[path[:length]]
        return self.file

    def set(self, override: Override) -> None:
        """Lay one value over the tree. Raises InputError when its path leads through a plain value.

        Under ``search.``, ``splits.``, ``variants.NAME.`` and ``enqueue.NAME.`` the rest is one key, which is
        a path of the config, unless it leads into an entry that is there already.
        """
        keys = self._keys(override.path)
        if not all(keys):
            raise InputError(
                f"{override.origin}: {override.path!r} is no path; write for example config.epochs"
            )
        tree = self.tree
        for depth, key in enumerate(keys[:-1], start=1):
            inner = tree.get(key)
            if inner is None:
                inner = tree[key] = {}
                self._places[keys[:depth]] = override.origin
            if not isinstance(inner, dict):
                outer = errors.dotted(keys[:depth])
                raise InputError(f"{override.origin}: {outer} is {show(inner)} and has no {keys[depth]!r}")
            tree = inner
        tree[keys[-1]] = override.value
        stale = [path for path in self._places if path[: len(keys)] == keys]
        for path in stale:
            del self._places[path]
        self._places[keys] = override.origin

    def _keys(self, path: str) -> tuple[str, ...]:
        """Split a path at its dots, but not within names and paths of the config, which may hold some."""
        first, *more = path.split(".")
        if first not in _ABOVE_PATHS:
            return first, *more
        keys: tuple[str, ...] = (first,)
        while more and len(keys) <= _ABOVE_PATHS[first]:
            rest = f"{errors.dotted(more)}."
            known = [each for each in self._at(keys) or () if rest.startswith(f"{each}.")]
            whole = len(more) if len(keys) == _ABOVE_PATHS[first] else 1
            length = max((each.count(".") + 1 for each in known), default=whole)
            keys, more = (*keys, errors.dotted(more[:length])), more[length:]
        return *keys, *more

    def _at(self, keys: tuple[str, ...]) -> dict[str, Any] | None:
        """The mapping that stands at a path, if one does."""
        here: Any = self.tree
        for key in keys:
            here = here.get(key) if isinstance(here, dict) else None
        return here if isinstance(here, dict) else None

    def variables(self) -> list[str]:
        """Names of the environment variables that the values name."""
        found = {match[1] for text in _strings(self.tree) for match in _VARIABLE.finditer(text)}
        return sorted(found)

    def fill(self, environment: Mapping[str, str]) -> None:
        """Replace ``${NAME}`` and ``${NAME:-default}`` in every string; raises FieldError for one not set."""
        self.tree = _filled(self.tree, environment, ())


def plain(text: str) -> Any:
    """Read one value as a file would hold it; what is no YAML is itself."""
    try:
        return _parse(text, "", {})
    except InputError:
        return text


def _text(path: Path, kind: str) -> str:
    """Read a file as UTF-8, or say why that cannot be done."""
    try:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder; name the {kind} file in it{_beside(path / f'{kind}.yaml')}"
            )
        if not path.exists():
            raise InputError(f"{path}: there is no such file{_beside(path)}")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path}: is larger than {_MOST_BYTES >> 10} KiB and is no {kind} file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text") from error


def _beside(path: Path) -> str:
    """Suggest a file in the folder of ``path``."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    names = [each.name for pattern in ("*.yaml", "*.yml") for each in path.parent.glob(pattern)]
    return nearest(path.name, names)


class _Composer(yaml.SafeLoader):
    """Composes nodes of plain values only, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML asks
    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases, tags and deep nesting before anything is built of them."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not allowed; write the value out", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _refused(
                f"tags ({tag.replace('tag:yaml.org,2002:', '!!')}) are not allowed; write a plain value",
                event.start_mark,
            )
        if self.level > _MOST_LEVELS:
            raise _refused(f"nested deeper than {_MOST_LEVELS} levels", event.start_mark)
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Composer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _parse(text: str, origin: str, places: dict[errors.Path, str]) -> Any:
    """Parse YAML into plain values and note the place of each; InputError lines begin with ``origin``."""
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
        return None if node is None else _value(node, (), origin, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(origin, mark) if mark else origin
        context = f" {error.context}" if error.context else ""
        raise InputError(f"{place}: {error.problem}{context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place = f"{origin}:{line}" if not origin.startswith("--") else origin
        raise InputError(f"{place}: the character U+{error.character:04X} is not allowed in YAML") from error
    except (
        ValueError,
        OverflowError,
    ) as error:  # an escape beyond Unicode, an integer of thousands of digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"{origin}: not readable as YAML: {error}") from error


def _place(origin: str, mark: yaml.Mark) -> str:
    return origin if origin.startswith("--") else f"{origin}:{mark.line + 1}"


def _value(node: yaml.Node, path: errors.Path, origin: str, places: dict[errors.Path, str]) -> Any:
    """Build the plain value of a node."""
    places.setdefault(path, _place(origin, node.start_mark))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(origin, key_node.start_mark)
            key = _value(key_node, (*path, "?"), origin, {})
            if not isinstance(key, str):
                raise InputError(f"{place}: the key {show(key)} is not a word; write it in quotes")
            if key in mapping:
                raise InputError(f"{place}: {errors.dotted((*path, key))} is given twice; keep one of them")
            places[(*path, key)] = place
            mapping[key] = _value(value_node, (*path, key), origin, places)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, (*path, index), origin, places) for index, each in enumerate(node.value)]
    kind = str(node.tag).rpartition(":")[2]
    text = str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{_place(origin, node.start_mark)}: {show(text)} holds a character that is not text"
        )
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _filled(value: Any, environment: Mapping[str, str], path: errors.Path) -> Any:
    """Copy a value with the variables of its strings replaced."""
    if isinstance(value, dict):
        return {key: _filled(inner, environment, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, environment, (*path, index)) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = environment.get(name) or default  # as in a shell, empty counts as not set
        if found is None:
            reason = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            raise FieldError(Fault(path, reason))
        return found

    if "${" in _VARIABLE.sub("", value):
        raise FieldError(Fault(path, f"{show(value)} is not of the form ${{NAME}} or ${{NAME:-default}}"))
    return _VARIABLE.sub(replacement, value)
