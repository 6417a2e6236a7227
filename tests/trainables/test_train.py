"""``python -m trainables.train``, which is short for a command of the orchestrator."""

import subprocess
import sys

import yaml

from tests.support.paths import ROOT


def test_train_needs_no_name_of_its_trainable(tiny, prepared, tmp_path):
    file, output = tmp_path / "config.yaml", tmp_path / "trained"
    file.write_text(yaml.safe_dump(tiny(epochs=1).model_dump(mode="json")))
    command = [sys.executable, "-m", "trainables.train", str(file), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test/others/mAP" in done.stdout and (output / "curves.png").exists()
    file.write_text("method: sequences")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}:1: method: ") and len(done.stderr.splitlines()) == 1
