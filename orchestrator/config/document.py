"""A YAML file as plain values, with the location at which the user wrote each of them.

PyYAML rather than ruamel.yaml 0.19, which reads ``1_000``, ``0x1F``, ``2001-01-01`` and ``<<`` as more than
text, and would need the same composer to refuse aliases, tags, deep nesting and keys that are not text.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator import errors
from orchestrator.errors import Fault, FieldError, InputError, nearest, quote

_MAX_BYTES = 1 << 18
_MAX_LEVELS = 32
_ODD_SPACES = "\u00a0\u2002\u2003\u2009\u200b\u3000"
"""Characters that look like a space and that YAML takes as text."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Override(NamedTuple):
    """A value that replaces one of the file; ``origin`` is how the user wrote it (e.g. ``--trials 3``)."""

    path: str
    value: Any
    origin: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read ``path=value`` of ``--set``, where the value is YAML.

        Raises:
            InputError: the text has no path, or its value is not valid YAML.
        """
        path, equals, value = text.partition("=")
        origin = f"--set {text}"
        if not equals or not path.strip():
            example = f"{path.strip() or 'config.epochs'}=3"
            raise InputError(f"{origin}: expected --set path=value, for example --set {example}")
        return cls(path.strip(), _parse(value, origin, {}), origin)


class Document:
    """The values of a file, and the location that each of them came from."""

    def __init__(
        self,
        file: str,
        tree: dict[str, Any],
        locations: dict[errors.Path, str],
        path_sections: Mapping[str, int] | None = None,
    ) -> None:
        """Hold the tree of values and the locations (``FILE:LINE``) of its paths."""
        self.file = file
        self.tree = tree
        self._locations = locations
        self._path_sections = path_sections or {}

    @classmethod
    def read(
        cls,
        path: Path,
        kind: str = "sweep",
        path_sections: Mapping[str, int] | None = None,
    ) -> "Document":
        """Read a YAML file.

        Aliases (they expand without bound), tags (they may run code), duplicate keys, several documents in a
        file, deep nesting, large files and undecodable bytes are refused. Plain scalars follow YAML 1.2:
        ``1e-3`` is a number, ``no`` is text.

        Args:
            path: the file.
            kind: name of this kind of file in messages.
            path_sections: sections whose keys are dotted paths, and how many keys precede such a path:
                1 for ``search.PATH``, 2 for ``enqueue.NAME.PATH``.

        Raises:
            InputError: the file cannot be read; the line begins with file and line.
        """
        text = _text(path, kind)
        locations: dict[errors.Path, str] = {}
        tree = _parse(text, str(path), locations)
        if tree is None:
            raise InputError(f"{path}: the file is empty")
        if not isinstance(tree, dict):
            raise InputError(
                f"{path}:1: the file holds {quote(tree)}; a {kind} file is a mapping of keys to values"
            )
        return cls(str(path), tree, locations, path_sections)

    def located(self, fault: Fault) -> str:
        """Return a fault as a line that begins with its location."""
        return f"{self.location(fault.path, fault.reason)}: {fault}"

    def location(self, path: errors.Path, reason: str = "") -> str:
        """Return where a path was written: its own line, or that of the nearest key around it.

        A group of a config may have been written as such, ``{rnn: {cell: gru}}``, or as ``rnn.cell``. Where
        an option of the command line set a key below the path that the reason names, it is that option.
        """
        locations = {errors.dotted(key): location for key, location in self._locations.items()}
        text = errors.dotted(path)
        words = set(re.findall(r"\w+", reason))
        for key, location in locations.items():
            if location.startswith("--") and key.startswith(f"{text}.") and key.rpartition(".")[2] in words:
                return location
        while text and text not in locations:
            text = text.rpartition(".")[0]
        return locations[text] if text else self.file

    def set(self, override: Override) -> None:
        """Put one value into the tree.

        In a section whose keys are paths, the rest of the path is one key, unless it leads into an entry
        that exists. ``package.module:Class`` is one key everywhere.

        Raises:
            InputError: the path is not valid, or leads through a plain value.
        """
        keys = self._keys(override.path)
        if not all(keys):
            raise InputError(
                f"{override.origin}: {override.path!r} is not a valid path; write for example config.epochs"
            )
        tree = self.tree
        for depth, key in enumerate(keys[:-1], start=1):
            inner = tree.get(key)
            if inner is None:
                inner = tree[key] = {}
                self._locations[keys[:depth]] = override.origin
            if not isinstance(inner, dict):
                outer = errors.dotted(keys[:depth])
                raise InputError(f"{override.origin}: {outer} is {quote(inner)} and has no {keys[depth]!r}")
            tree = inner
        tree[keys[-1]] = override.value
        stale = [path for path in self._locations if path[: len(keys)] == keys]
        for path in stale:
            del self._locations[path]
        self._locations[keys] = override.origin

    def _keys(self, path: str) -> tuple[str, ...]:
        """Split a path at its dots, except for those within a key of the file."""
        first, _, rest = path.partition(".")
        more = re.split(r"\.(?![\w.]*:)", rest) if rest or path.endswith(".") else []
        if first not in self._path_sections:
            return first, *more
        keys: tuple[str, ...] = (first,)
        depth = self._path_sections[first]
        while more and len(keys) <= depth:
            remainder = f"{errors.dotted(more)}."
            existing = [key for key in self._mapping(keys) if remainder.startswith(f"{key}.")]
            whole = len(more) if len(keys) == depth else 1
            length = max((key.count(".") + 1 for key in existing), default=whole)
            keys, more = (*keys, errors.dotted(more[:length])), more[length:]
        return *keys, *more

    def _mapping(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Return the mapping at a path, or an empty one."""
        value: Any = self.tree
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def variables(self) -> list[str]:
        """Return the names of the environment variables that the values refer to."""
        return sorted({match[1] for text in strings(self.tree) for match in _VARIABLE.finditer(text)})

    def fill(self, environment: Mapping[str, str]) -> None:
        """Replace ``${NAME}`` and ``${NAME:-default}`` in every string.

        Raises:
            FieldError: a variable without a default is not set.
        """
        self.tree = _filled(self.tree, environment, ())


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested mappings by dotted path; an empty mapping is a value.

    >>> flatten({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{path}": inner for path, inner in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def plain(text: str) -> Any:
    """Return the value of a text as YAML reads it, or the text itself where it is not valid YAML."""
    try:
        return _parse(text, "", {})
    except InputError:
        return text


class _Dumper(yaml.SafeDumper):
    """Writes what `Document` reads: text that would be read as another value is in quotes."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if plain(text) == text else '"'
    ),
)


def dump(tree: Mapping[str, Any]) -> str:
    """Return plain values as the text of a file."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _text(path: Path, kind: str) -> str:
    """Return the text of a file; raises InputError when it cannot be read as UTF-8."""
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
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path}: is larger than {_MAX_BYTES >> 10} KiB, so it is not a {kind} file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text") from error


def _beside(path: Path) -> str:
    """Return the end of a line that suggests a file in the folder of ``path``."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    names = [file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
    return nearest(path.name, names)


class _Composer(yaml.SafeLoader):
    """A composer of plain values only, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML asks
    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, after refusing aliases, tags and deep nesting."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not allowed; write the value out", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _refused(
                f"tags ({tag.replace('tag:yaml.org,2002:', '!!')}) are not allowed; write a plain value",
                event.start_mark,
            )
        if self.level > _MAX_LEVELS:
            raise _refused(f"nested deeper than {_MAX_LEVELS} levels", event.start_mark)
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


def _odd_space(character: str) -> str:
    return f"the character U+{ord(character):04X} is not a space; indent with spaces"


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Return the problem of a YAML text in the words of a user."""
    problem = str(error.problem)
    if "<block" in problem:  # PyYAML 6 names its tokens
        return "the indentation does not match that of the lines before"
    if problem.startswith("mapping values are not allowed"):
        return f"{problem}; check the indentation, or put the value in quotes"
    if problem.endswith("but got '{'"):
        return f"{problem}; put a value that contains ${{NAME}} in quotes"
    return f"{problem} {error.context}" if error.context else problem


def _parse(text: str, origin: str, locations: dict[errors.Path, str]) -> Any:
    """Return the plain values of a YAML text, and note the location of each in ``locations``.

    ``origin`` is the file, or the option of the command line: the line of an InputError begins with it.
    """
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
        return None if node is None else _value(node, (), origin, locations)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = _location(origin, mark) if mark else origin
        if odd := re.search(f"^[ \\t]*([{_ODD_SPACES}])", text, re.MULTILINE):
            location = _location(origin, yaml.Mark(origin, 0, text.count("\n", 0, odd.start()), 0, None, 0))
            raise InputError(f"{location}: {_odd_space(odd[1])}") from error
        raise InputError(f"{location}: {_problem(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        location = f"{origin}:{line}" if not origin.startswith("--") else origin
        raise InputError(f"{location}: YAML does not allow the character U+{error.character:04X}") from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, an integer of 5,000 digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"{origin}: not readable as YAML: {error}") from error


def _location(origin: str, mark: yaml.Mark) -> str:
    return origin if origin.startswith("--") else f"{origin}:{mark.line + 1}"


def _value(node: yaml.Node, path: errors.Path, origin: str, locations: dict[errors.Path, str]) -> Any:
    """Return the plain value of a node."""
    locations.setdefault(path, _location(origin, node.start_mark))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            location = _location(origin, key_node.start_mark)
            key = _value(key_node, (*path, "?"), origin, {})
            if isinstance(key, str) and key[:1] in tuple(_ODD_SPACES):
                raise InputError(f"{location}: {_odd_space(key[0])}")
            if not isinstance(key, str):
                raise InputError(f"{location}: the key {quote(key)} is not text; write it in quotes")
            if key in mapping:
                dotted = errors.dotted((*path, key))
                raise InputError(f"{location}: {dotted} is given twice; keep one of them")
            locations[(*path, key)] = location
            mapping[key] = _value(value_node, (*path, key), origin, locations)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), origin, locations) for index, item in enumerate(node.value)]
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
        raise InputError(f"{_location(origin, node.start_mark)}: {quote(text)} contains an invalid character")
    return text


def strings(value: Any) -> Iterator[str]:
    """Yield each text among plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def _filled(value: Any, environment: Mapping[str, str], path: errors.Path) -> Any:
    """Return a copy of a value with the variables of its strings replaced."""
    if isinstance(value, dict):
        return {key: _filled(inner, environment, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, environment, (*path, index)) for index, inner in enumerate(value)]
    bare = re.match(r"\$(\w+)(?=/|$)", value) if isinstance(value, str) else None
    if bare is not None and bare[1] in environment:
        reason = f"{quote(bare[0])} is not replaced by the environment variable; write ${{{bare[1]}}}"
        raise FieldError(Fault(path, reason))
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match.groups()
        text = environment.get(name) or default  # as in a shell, empty counts as not set
        if text is None:
            reason = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            raise FieldError(Fault(path, reason))
        return text

    if "${" in _VARIABLE.sub("", value):
        raise FieldError(Fault(path, f"{quote(value)} is not of the form ${{NAME}} or ${{NAME:-default}}"))
    return _VARIABLE.sub(replacement, value)
