"""Ten thousand damaged sweep files: each is planned or refused with one line, and nothing is written.

Each goes through what ``python -m orchestrator.sweep FILE --dry-run`` does, in this process and with a
simulated cluster in place of Ray, which takes seconds to start. Every request to a server fails.
``FAULT_FILES`` (default 10,000) is the number of files.
"""

import contextlib
import copy
import io
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import requests
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from orchestrator import sweep
from orchestrator.execution import cluster
from orchestrator.execution.cluster import TRIAL_SLOT, Cluster
from tests.support.paths import ROOT

FILES = int(os.environ.get("FAULT_FILES", "10000"))
SECONDS = 10
"""Limit for one file; most take hundredths of a second."""
LONGEST = 1500
"""Limit of the characters in the line about a fault."""

EXAMPLE = """\
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
config:
  epochs: 9
  noise: {kind: uniform}
  sets:
    first: {kind: none, width: 0.5}
search:
  x: {uniform: [-5, 5]}
  steps: {int: [1, 7], step: 2}
  noise.kind: {choice: [none, uniform]}
  noise.width: {log_uniform: [0.001, 1], when: {noise.kind: uniform, steps: [1, 3]}}
objective:
  - {metric: val/score, mode: max}
sampler: {tpe: {seed: 0}}
scheduler: {asha: {grace: 2, reduction: 3}}
budget: {trials: 4, wall: 30m, no_gain_for: 3, failures: 4}
enqueue: {first: {x: 1.0}, second: {steps: 3, noise.kind: none}}
resources: {workers: 1, cpus: 1, gpus: 0.5, concurrent: auto, report_timeout: 10m}
registry: {model: example, alias: champion}
storage: ${PLACE:-/tmp}/sweeps
tracking: {uri: null, experiment: parabola}
"""
SEEDS = [(ROOT / "search_spaces" / "alignment.yaml").read_text(), EXAMPLE, EXAMPLE]
TREES = [yaml.safe_load(text) for text in SEEDS]

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**30, -(10**400), 2**63]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["none", "uniform", "auto", "x", "s3://b", "http://nobody", "${NO}", "1e400", "/", "~no"]
    ),
    st.lists(st.integers(-2, 2) | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
_SIGNS = ["\t", "\x00", "\ufeff", "\u2028", "\U0001f600", "'", '"', "{", "}", ": ", "- ", "\n\n", "---\n"]
PIECES = st.text(max_size=4) | st.sampled_from(
    [*_SIGNS, "&a", "*a", "!!python/object:os.system", "[" * 80, "9" * 5000]
)


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    nested = [path] if path else []
    for key, value in children:
        nested += paths(value, (*path, key))
    return nested


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw a file with one to three mutations, of its tree or of its text."""
    which = draw(st.integers(0, len(SEEDS) - 1))
    if draw(st.booleans()):
        tree = copy.deepcopy(TREES[which])
        for _ in range(draw(st.integers(1, 3))):
            if candidates := paths(tree):
                mutate(draw, tree, draw(st.sampled_from(candidates)))
        return yaml.dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    text = SEEDS[which]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 9, 60])))
        text = text[:start] + draw(PIECES | st.just(text[start:stop] * 2)) + text[stop:]
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at:]
    return data


def mutate(draw: st.DrawFn, tree: Any, path: tuple[Any, ...]) -> None:
    """Change one value of a tree."""
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    kind = draw(st.sampled_from(["replace", "replace", "drop", "rename", "swap", "extra"]))
    if kind == "replace":
        parent[last] = draw(VALUES)
    elif kind == "drop":
        del parent[last]
    elif kind == "rename" and isinstance(parent, dict):
        name = str(last)
        at = draw(st.integers(0, len(name)))
        parent[name[:at] + draw(st.sampled_from(["", "x", ".", " "])) + name[at + 1 :]] = parent.pop(last)
    elif kind == "swap" and isinstance(parent[last], list):
        parent[last].reverse()
    elif isinstance(parent, dict):
        parent[draw(st.sampled_from([*parent, "when", "x", "warm_start", "seed"]))] = draw(VALUES)


_SETTINGS = [
    "search.x={uniform: [0, 1]}",
    "budget.trials=0",
    "config.epochs=-1",
    "=",
    "a..b=1",
    "resources=3",
]
_MORE_SETTINGS = [
    "search.x.uniform=[1, 0]",
    "enqueue.z.x=99",
    "warm_start=[nobody]",
    "study=mysql://x",
    "config=[1]",
]
OVERRIDES = st.lists(st.sampled_from([*_SETTINGS, *_MORE_SETTINGS]), max_size=1)


@pytest.mark.faults
@pytest.mark.timeout(5400)
def test_damaged_sweep_file_is_planned_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise requests.ConnectionError("Connection refused")

    nodes = ({"CPU": 8.0, "GPU": 2.0, TRIAL_SLOT: 64.0},)
    joined = Cluster("10.0.0.1:6379", "http://10.0.0.1:8265", None, nodes)
    monkeypatch.setattr(cluster, "start", create_autospec(cluster.start, return_value=joined))
    monkeypatch.setattr(requests.Session, "request", refuse)
    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    file, store = tmp_path / "damaged.yaml", tmp_path / "store"
    counts: Counter[str] = Counter()

    @settings(
        max_examples=FILES,
        derandomize=True,
        database=None,
        deadline=SECONDS * 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(files(), OVERRIDES)
    def check(data: bytes, overrides: list[str]) -> None:
        file.write_bytes(data)
        note(data.decode("utf-8", "replace"))
        options = [option for override in overrides for option in ("--set", override)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = sweep.main([str(file), "--dry-run", "--storage", str(store), *options])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.yaml"]
        assert code in (0, 2), out.getvalue() + err.getvalue()
        counts["planned" if code == 0 else "refused"] += 1
        if code == 0:
            assert "Sweep " in out.getvalue() and not err.getvalue()
        else:
            (line,) = err.getvalue().splitlines()
            assert line.startswith("error: ") and line.isprintable() and len(line) < LONGEST, line

    check()
    print(f"\n{counts.total()} files: {dict(counts)}", file=sys.__stdout__)
