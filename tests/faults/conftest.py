"""Tests of this folder use the example trainable of the orchestrator's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator"))
