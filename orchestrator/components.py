"""Components that a file names: a short name of a built-in one, or ``package.module:Class``."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from orchestrator.errors import InputError, nearest, one_line, quote

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_Base = TypeVar("_Base")


def find(kind: str, name: str, builtin: Mapping[str, type[_Base]], base: type[_Base]) -> type[_Base]:
    """Return the class of a component.

    Args:
        kind: name of this kind of component in messages.
        name: a short name, or ``package.module:Class``.
        builtin: the built-in classes by short name.
        base: base class of classes that are not built in.

    Raises:
        InputError: there is no such component, or it is not a subclass of ``base``.
    """
    if name in builtin:
        return builtin[name]
    if ":" not in name:
        raise InputError(f"unknown {kind} {quote(name)}{nearest(name, builtin)}")

    def is_suitable(value: object) -> bool:
        return isinstance(value, type) and issubclass(value, base)

    component = resolve(name, is_suitable)
    if not is_suitable(component):
        raise InputError(f"{name!r} is not a subclass of {base.__module__.split('.')[0]}'s {base.__name__}")
    return cast(type[_Base], component)


def resolve(dotted: str, is_suitable: Callable[[Any], bool] = inspect.isclass) -> Any:
    """Import what ``package.module:name`` names.

    Args:
        dotted: the module and the name in it.
        is_suitable: which objects of the module to suggest when it has none of this name.

    Raises:
        InputError: the text is not of this form, the module cannot be imported or lacks the name.
    """
    if not _DOTTED.fullmatch(dotted):
        raise InputError(f"invalid name {quote(dotted)}; expected package.module:Class")
    module_name, _, name = dotted.partition(":")
    try:
        return pkgutil.resolve_name(dotted)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"there is no module {error.name!r}{_nearest_module(error.name)}") from error
        raise InputError(f"module {module_name!r} needs {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # whatever the module does while it is imported
        module = sys.modules.get(module_name)
        if module is None or not isinstance(error, AttributeError):
            raise InputError(
                f"module {module_name!r} cannot be imported: {describe_raised(error)}"
            ) from error
        names = [key for key, value in vars(module).items() if is_suitable(value)]
        raise InputError(f"module {module_name!r} has no {name!r}{nearest(name, names)}") from error


def code_digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the source file of each imported module, by module.

    Args:
        names: texts; those that are not of the form ``package.module:name`` are ignored.
    """
    digests = {}
    for module_name in sorted({name.partition(":")[0] for name in names if _DOTTED.fullmatch(name)}):
        file = getattr(sys.modules.get(module_name), "__file__", None)
        if file is not None:
            with contextlib.suppress(OSError):
                digests[module_name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return digests


def describe_raised(error: BaseException) -> str:
    """Return type, message and place of what foreign code raised: ``ValueError: no (code.py, line 3)``."""
    if isinstance(error, SyntaxError):  # its text names the place
        return f"{type(error).__name__}: {one_line(error, 300)}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(error, 300)}{place}"


def _nearest_module(missing: str) -> str:
    """Return the end of a line that suggests a module beside the missing one."""
    package = missing.rpartition(".")[0]
    folders = importlib.import_module(package).__path__ if package else None
    names = [module.name for module in pkgutil.iter_modules(folders)]
    if package:
        return nearest(missing, [f"{package}.{name}" for name in names])
    # Packages that are installed in editable mode are in no folder of the path.
    return nearest(missing, {*names, *importlib.metadata.packages_distributions()}, listed=False)
