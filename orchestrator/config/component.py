"""A component that a file names, with its arguments: a sampler or a scheduler."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import optuna
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from orchestrator import components
from orchestrator.config.sections import Section
from orchestrator.config.validation import first_fault
from orchestrator.errors import FieldError, InputError, quote

_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


class Component(Section):
    """A component by name, with its arguments: ``NAME`` or ``{NAME: {argument: value}}``.

    NAME is a short name or ``package.module:Class``. The arguments are validated by the pydantic model
    ``Config`` of the class where it has one, else against the types of its constructor (numbers, text and
    booleans).
    """

    kind: ClassVar[str]
    """Name of this kind of component in messages."""
    example: ClassVar[str]
    builtin: ClassVar[Mapping[str, type[Any]]]
    """The built-in classes by short name."""
    base: ClassVar[type[Any]]
    """Base class of classes that are not built in."""

    name: str
    arguments: dict[str, Any] = Field(default={})

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema of what a file holds: a name, or a name with its arguments."""
        named = {"anyOf": [{"enum": list(cls.builtin)}, {"pattern": ":"}]}
        return {
            "anyOf": [
                {"type": "string", **named},
                {"type": "object", "propertyNames": named, "minProperties": 1, "maxProperties": 1},
            ],
            "examples": [f"{{{cls.example}}}"],
        }

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        name, arguments = _name_and_arguments(data, cls.example)
        model = _arguments_model(components.find(cls.kind, name, cls.builtin, cls.base))
        try:
            config = model.model_validate(arguments)
        except ValidationError as error:
            raise FieldError(first_fault(error, model, arguments, name)) from error
        dump = config.model_dump(mode="json", by_alias=True, exclude_unset=issubclass(model, _Signature))
        return {"name": name, "arguments": dump}

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self._construct()
        return self

    @model_serializer
    def _as_written(self) -> Any:
        return {self.name: self.arguments}

    def _construct(self, seed_offset: int = 0) -> Any:
        """Return a new instance of the class, with ``seed_offset`` added to its seed, if it has one.

        Raises:
            InputError: the class refuses the arguments.
        """
        component = components.find(self.kind, self.name, self.builtin, self.base)
        model = _arguments_model(component)
        config = model.model_validate(self.arguments)
        names = config.model_fields_set if issubclass(model, _Signature) else model.model_fields
        arguments = {name: getattr(config, name) for name in names}
        if isinstance(arguments.get("seed"), int):
            arguments["seed"] += seed_offset
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # deprecated arguments
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return component(**arguments)
            except (ValueError, TypeError, FutureWarning) as error:
                raise InputError(f"{self.name}: {error}") from error


class _Signature(BaseModel):
    """Base of the models that are derived from the constructor of a class."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _arguments_model(component: type[Any]) -> type[BaseModel]:
    """Return the model that validates the arguments of a component."""
    if issubclass(component, BaseModel):
        return component
    config = getattr(component, "Config", None)
    if isinstance(config, type) and issubclass(config, BaseModel):
        if config.model_config.get("extra") != "forbid":
            raise InputError(f"the 'Config' of {component.__name__} accepts unknown keys; set extra='forbid'")
        return config
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(component).parameters.items():
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        plain = text.removeprefix("Optional[").removesuffix("]").removesuffix(" | None")
        if plain in _PLAIN:
            required = parameter.default is inspect.Parameter.empty
            fields[name] = (_PLAIN[plain], ... if required else parameter.default)
    return create_model(component.__name__, __base__=_Signature, **fields)


def _name_and_arguments(data: Any, example: str) -> tuple[str, dict[str, Any]]:
    """Return the two parts of ``name`` or ``{name: {argument: value}}``; raises ValueError."""
    if isinstance(data, str):
        return data, {}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ValueError(f"{quote(data)} is not one name with its arguments; write for example {{{example}}}")
    ((name, arguments),) = data.items()
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(
            f"invalid arguments of {name}: {quote(arguments)}; expected for example {{{example}}}"
        )
    return str(name), dict(arguments or {})
