"""What every section of a config refuses."""

import pytest
from pydantic import Field, ValidationError

from trainables.network.section import Section


class Example(Section):
    count: int = Field(1, ge=0)
    rate: float | None = None
    level: int | bool = False
    fast: bool = False


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"count": True}, "should be a number, not true"),
        ({"rate": False}, "should be a number, not false"),
        ({"speed": 1}, "Extra inputs are not permitted"),
    ],
)
def test_section_invalid_value_is_refused(values: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        Example.model_validate(values)


def test_section_bool_where_one_belongs_is_taken() -> None:
    taken = Example.model_validate({"level": True, "fast": True, "rate": None, "count": 0})
    assert taken.level is True and taken.fast is True
