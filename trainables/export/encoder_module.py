"""Export of encoder modules from outside ``trainables.network``.

The module is copied as one file into the exported network package, and imports that package instead of
``trainables.network``.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

NETWORK = "trainables.network"
COPY = "encoder_module.py"
"""Name of the copy in the exported package."""


def is_outside(name: str) -> bool:
    """Return whether ``name`` is a ``package.module:Class`` outside ``trainables.network``."""
    module, colon, _ = name.partition(":")
    return bool(colon) and not _is_network(module)


def check_portable(name: str) -> None:
    """Check that an exported model can contain the module of the encoder.

    Raises:
        ValueError: it cannot.
    """
    if is_outside(name):
        required_packages(name)


def required_packages(name: str) -> list[str]:
    """Return the distributions that the module of an encoder imports.

    Raises:
        ValueError: it imports a module that an exported model does not have.
    """
    module = name.partition(":")[0]
    distributions = packages_distributions()
    required: set[str] = set()
    for imported in _imports(_source(module)):
        top = imported.partition(".")[0]
        if _is_network(imported) or top in sys.stdlib_module_names:
            continue
        if imported.startswith(".") or top == "trainables" or top not in distributions:
            raise ValueError(
                f"{name!r} cannot be exported: module {module!r} imports {imported!r}, which an exported"
                f" model does not have; import installed packages and {NETWORK} only"
            )
        required.add(distributions[top][0])
    return sorted(required)


def source(name: str) -> str:
    """Return the source of the module of an encoder."""
    return _source(name.partition(":")[0])


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"module {module!r} is not a Python file, so an exported model cannot contain it")
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(source: str) -> Iterator[str]:
    """Yield every module that ``source`` imports; the names of relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def _is_network(module: str) -> bool:
    return module == NETWORK or module.startswith(f"{NETWORK}.")
