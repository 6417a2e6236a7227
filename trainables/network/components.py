"""Lookup of the components that a config names by a short name or by ``package.module:Class``.

This module is in ``network`` because encoders need it, and an exported model contains ``network`` alone.
"""

import difflib
import pkgutil
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, model_validator

from .section import Section


class Options(Section):
    """Base class of the options of a component, which names its subclass as ``Options``.

    Fields can be searched like all others of a config. They must survive a round trip through JSON.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        names = values if isinstance(values, Mapping) else ()
        aliases = {field.alias for field in cls.model_fields.values()}
        unknown = [str(name) for name in names if name not in cls.model_fields and name not in aliases]
        if unknown:
            hint = did_you_mean(unknown[0], cls.model_fields)
            expected = ", ".join(cls.model_fields) or "none"
            raise ValueError(f"option {unknown[0]}: no such option; {hint}options: {expected}")
        return values


Component = TypeVar("Component")


def find(
    kind: str, name: str, builtin: Mapping[str, type[Component]], base: type[Any], *, also: str = ""
) -> type[Component]:
    """Return the class of a component, such as a method or an encoder.

    Args:
        kind: name of this kind of component in messages.
        name: a key of ``builtin``, or ``package.module:Class``.
        builtin: components by their short name.
        base: base class of this kind of component.
        also: another form of name, which the caller resolves; named in the message.

    Raises:
        ValueError: there is no such class, or it is not a component of this kind. The message is one line.
    """
    if name in builtin:
        return builtin[name]
    if ":" not in name:
        forms = ", ".join([*builtin, also] if also else builtin)
        raise ValueError(
            f"no {kind} {name!r}; {did_you_mean(name, builtin)}expected {forms}, or package.module:Class"
        )
    module, _, attribute = name.partition(":")
    try:
        pkgutil.resolve_name(f"{module}:")
    except (Exception, SystemExit) as error:  # a user's module may raise any error on import
        raise ValueError(
            f"{kind} {name!r}: cannot import {module!r}: {type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        component = pkgutil.resolve_name(name)
    except (AttributeError, ValueError) as error:
        hint = did_you_mean(attribute, vars(pkgutil.resolve_name(f"{module}:"))).rstrip()
        raise ValueError(
            f"{kind} {name!r}: module {module!r} has no attribute {attribute!r}{'; ' if hint else ''}{hint}"
        ) from error
    expected = f"{base.__module__}.{base.__qualname__}"
    if not (isinstance(component, type) and issubclass(component, base)):
        raise ValueError(f"{kind} {name!r} is not a subclass of {expected}")
    if missing := getattr(component, "__abstractmethods__", None):
        raise ValueError(f"{kind} {name!r} is abstract; it lacks {', '.join(sorted(missing))}")
    return component


def check_options(component: Any, values: Any) -> Options:
    """Return ``values`` as the ``Options`` of a component class.

    Args:
        component: class of the component.
        values: a mapping, or an instance of some ``Options``.

    Raises:
        pydantic.ValidationError: a value is not valid.
    """
    model: type[Options] = component.Options
    if isinstance(values, Options) and type(values) is not model:
        values = values.model_dump(exclude_unset=True)
    return model.model_validate(values)


def component_name(find_component: Callable[[str], type[Any]]) -> AfterValidator:
    """Return the validator of a field that names a component."""

    def check(name: str) -> str:
        find_component(name)
        return name

    return AfterValidator(check)


def options_of(field: str, find_component: Callable[[str], type[Any]]) -> BeforeValidator:
    """Return the validator of a field with the options of the component that ``field`` names.

    ``field`` has to stand before it in the model, and the type of the field is ``SerializeAsAny[Options]``.
    """

    def check(values: Any, info: ValidationInfo) -> Options:
        name = info.data.get(field)  # missing where the name itself is wrong
        return check_options(find_component(name), values) if name else Options()

    return BeforeValidator(check)


def absolute_path(path: Path) -> Path:
    """Return a path that names the same file in every process, relative to the present folder.

    Raises:
        ValueError: it begins with ``~`` and a user who does not exist.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


AbsolutePath = Annotated[Path, AfterValidator(absolute_path)]
"""A path of a config, which workers read in another folder."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar of ``names``; None if its similarity (0..1) is below ``cutoff``.

    Neither case nor the Unicode form counts.
    """
    simple = {_simple(each): each for each in names}
    match = difflib.get_close_matches(_simple(name), list(simple), n=1, cutoff=cutoff)
    return simple[match[0]] if match else None


def _simple(name: str) -> str:
    return unicodedata.normalize("NFC", name.lower())


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``"did you mean 'x'? "`` with the most similar of ``names``, or an empty string."""
    match = nearest(name, names, cutoff)
    if match is None or match == name:
        return ""
    if match.lower() != name.lower() and _simple(match) == _simple(name):  # they look the same
        return f"did you mean {match!a}, in that Unicode form, not {name!a}? "
    return f"did you mean {match!r}? "


def one_line(error: object) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split())
