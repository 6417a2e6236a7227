"""Checkov, a linter for mistakes in configuration files."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.infra.required_tools import need

VERSION = "3.3.30"
"""Other versions have other checks."""

Accepted = Mapping[str, tuple[str, str]]
"""Checks that may fail: for each, a pattern for the names of the resources, and the reason."""


def objections(framework: str, accepted: Accepted, *files: Path) -> list[str]:
    """Return failed checks that are not accepted, and accepted checks that do not fail."""
    program = need("checkov", f"pipx install checkov=={VERSION}: it wants other packages than MLflow and Ray")
    given = [each for file in files for each in ("-f", str(file))]
    done = subprocess.run(
        [program, *given, "--framework", framework, "-o", "json", "--skip-download", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(("{", "[")), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 0 and report["summary"]["parsing_errors"] == 0, report["summary"]
    failed = [
        (each["check_id"], re.split("[./]", each["resource"])[-1])
        for each in report["results"]["failed_checks"]
    ]
    wrong = {f"{check}: {name}" for check, name in failed if not _may(accepted, check, name)}
    return sorted(wrong) + [f"{check}: passes" for check in accepted if check not in dict(failed)]


def _may(accepted: Accepted, check: str, name: str) -> bool:
    return check in accepted and re.fullmatch(accepted[check][0], name) is not None
