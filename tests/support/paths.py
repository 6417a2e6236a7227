"""Folders of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout. It has to be on ``PYTHONPATH`` where a trainable of `tests.support` is named."""

EXAMPLES = ROOT / "tests" / "support" / "examples"
"""The worked examples of trainables/README.md."""
