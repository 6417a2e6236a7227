"""Base of the sections of a config."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A section of a config: unknown keys are refused, and it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number belongs, which Pydantic would take for 1 and 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        types = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and bool not in types and types & {int, float}:
            raise ValueError(f"should be a number, not {str(value).lower()}")
        return value
