"""How many faults of a file one line counts."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.config.validation import first_fault


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Budget(Strict):
    trials: int
    wall: int


class File(Strict):
    budget: Budget | int = 1
    size: int = 0
    name: str = ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"budget": {"trails": 4, "wall": 1}}, "unknown key; did you mean 'trials'?"),
        ({"budget": {"trails": 4}}, "unknown key; did you mean 'trials'? (and 1 more at fault)"),
        (
            {"budget": {"trails": 4, "wal": 1}},
            "unknown key; did you mean 'trials'? (and 1 more at fault)",
        ),
        ({"size": "x", "name": 1}, "should be a whole number, not 'x' (and 1 more at fault)"),
        ({"size": "x"}, "should be a whole number, not 'x'"),
    ],
)
def test_first_fault_counts_the_others_without_what_follows(data: Any, reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        File.model_validate(data)
    assert first_fault(raised.value, File, data).reason == reason
