"""What Checkov, which knows hundreds of mistakes of configuration, objects to in files."""

import json
import subprocess
from pathlib import Path

from required_tools import need


def objections(framework: str, *files: Path) -> set[tuple[str, str]]:
    """Every failed check, with the resource that it is about."""
    program = need("checkov", "pipx install checkov: it wants other versions of boto3 than MLflow and Ray")
    given = [each for file in files for each in ("-f", str(file))]
    done = subprocess.run(
        [program, *given, "--framework", framework, "-o", "json", "--skip-download", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(("{", "[")), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 0 and report["summary"]["parsing_errors"] == 0, report["summary"]
    return {
        (each["check_id"], each["resource"].rpartition("/")[2]) for each in report["results"]["failed_checks"]
    }
