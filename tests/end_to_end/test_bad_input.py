"""Every fault in a sweep file gives one clear line, never a traceback."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.document import Override
from orchestrator.config.sweep import read_sweep
from orchestrator.errors import InputError
from orchestrator.trainable import load

SWEEP = """\
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 9, noise: {kind: uniform}}
search:
  x: {uniform: [-5, 5]}
  noise.width: {log_uniform: [0.001, 1], when: {noise.kind: uniform}}
objective: {metric: val/score, mode: max}
sampler: {tpe: {seed: 0}}
scheduler: {asha: {grace: 2, reduction: 3}}
budget: {trials: 4, wall: 30m, no_gain_for: 3}
resources: {workers: 1, cpus: 1, gpus: 0, concurrent: auto}
registry: {model: multi-shot-reid, alias: champion}
storage: /tmp/sweeps
tracking: {uri: null, experiment: parabola}
enqueue: {paper: {x: 1, noise.width: 0.1}}
warm_start: [earlier, "mlflow:parabola"]
"""

ALIAS_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
DEEP = "[" * 200 + "]" * 200


def error_line(file: Path, *overrides: str) -> str:
    """Return the line that the user sees."""
    with pytest.raises(InputError) as error:
        read_sweep(file, [Override.parse(override) for override in overrides], environment={})
    line = str(error.value)
    assert line.isprintable() and 0 < len(line) < 500
    return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "parabola.yaml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", ":1: the file holds ['a']; a sweep file is a mapping"),
        (b"name: x\nsearch: [1\n", ":3: expected ',' or ']'"),
        (b"config:\n  epochs: 2\n x: 3\n", ":3: the indentation does not match that of the lines before"),
        ("a:\n \u00a0b: 1\n".encode(), ":2: the character U+00A0 is not a space; indent with spaces"),
        (b"a: {b: ${HOME}}\n", ":1: expected ',' or '}', but got '{'; put a value that contains ${NAME} in"),
        (b"name: a\n config:\n", ":2: mapping values are not allowed here; check the indentation, or"),
        (b"name: x\n\tbad: 1\n", ":2: found character '\\t'"),
        (b"name: a\nbudget: {trials: 1}\nname: b\n", ":3: name is given twice"),
        (b"budget: {trials: 1,\n trials: 2}\n", ":2: budget.trials is given twice"),
        (ALIAS_BOMB.encode(), ":2: aliases (*name) are not allowed"),
        (b"a: &a [*a]\n", ":1: aliases (*name) are not allowed"),
        (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", ":2: tags (!!python/object/apply:os.system)"),
        (b"a: !own 1\n", ":1: tags (!own) are not allowed"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"1: a\n", ":1: the key 1 is not text"),
        (b"{a: 1}: b\n", ":1: the key {'a': 1} is not text"),
        (b"a: " + DEEP.encode(), ":1: nested deeper than 32 levels"),
        (b"a: 1\nb: \xff\xfe\n", ":2: byte 0xff is not UTF-8"),
        (b"a: 1\nb: \0\n", ":2: YAML does not allow the character U+0000"),
        (b'a: "\\0"\n', ":1: '\\x00' contains an invalid character"),
        (b'a: "\\UFFFFFFFF"\n', "not readable as YAML"),
        (b"a: " + b"9" * 5000, "not readable as YAML"),
        (b"a: " + b"x" * (1 << 18), "larger than 256 KiB, so it is not a sweep file"),
    ],
)
def test_read_sweep_invalid_text_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert expected in error_line(path)
    assert error_line(path).startswith(str(path))


def test_read_sweep_unreadable_file_is_one_line(file: Path) -> None:
    assert error_line(file.with_name("parabolla.yaml")).endswith(
        "no such file; did you mean 'parabola.yaml'?"
    )
    assert error_line(file.parent / "nowhere" / "a.yaml").endswith(
        f"folder {file.parent / 'nowhere'} does not exist"
    )
    assert "is a folder" in error_line(file.parent)
    assert "a?b.yaml: there is no such file" in error_line(Path("a\0b.yaml"))
    assert "not a regular file" in error_line(Path("/dev/null"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("name", "name: missing"),
        ("budget", "budget: missing; when to end: {trials: 24}"),
        ("search", "search: missing"),
    ],
)
def test_read_sweep_missing_key_is_one_line(file: Path, key: str, expected: str) -> None:
    tree = yaml.safe_load(SWEEP)
    del tree[key]
    file.write_text(yaml.safe_dump(tree))
    assert expected in error_line(file)


def test_read_sweep_fault_names_line_or_override(file: Path) -> None:
    file.write_text(SWEEP.replace("trials: 4", "trails: 4"))
    assert error_line(file) == f"{file}:10: budget.trails: unknown key; did you mean 'trials'?"
    file.write_text(SWEEP.replace("epochs: 9", "epochs: 0"))
    assert error_line(file) == f"{file}:3: config.epochs: should be greater than or equal to 1, not 0"
    file.write_text(SWEEP.replace("[-5, 5]", "[-5, 50]"))
    assert error_line(file) == f"{file}:5: search.x: should be less than or equal to 10, not 50.0"
    file.write_text(SWEEP.replace("/tmp/sweeps", "${REID_ROOM}/sweeps"))
    assert error_line(file).startswith(f"{file}:13: storage: the environment variable REID_ROOM is not set")
    file.write_text(SWEEP)
    with pytest.raises(
        InputError, match=r"^--trials 0: budget\.trials: should be greater than or equal to 1"
    ):
        read_sweep(file, [Override("budget.trials", 0, "--trials 0")])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.trials=0", "budget.trials: should be greater than or equal to 1, not 0"),
        ("budget.trials=few", "budget.trials: should be a whole number, not 'few'"),
        ("budget.trials=true", "budget.trials: should be a number, not true"),
        ("budget.trials=2.5", "budget.trials: should be a whole number, not 2.5"),
        ("budget.wall=90", "budget.wall: invalid duration 90; expected for example 90s, 30m, 2h or 1d"),
        ("budget.wall=0m", "invalid duration '0m'; expected more than 0 seconds"),
        ("nmae=x", "nmae: unknown key; did you mean 'name'?"),
        ("name=../up", "name: invalid name '../up'; expected at most 63 of a-z"),
        ("name.first=x", "name is 'parabola' and has no 'first'"),
        ("config.epohcs=2", "config.epohcs: unknown key; did you mean 'epochs'?"),
        ("config.noise.kin=none", "config.noise.kin: unknown key; did you mean 'kind'?"),
        (
            "config.noise.kind=unifrom",
            "invalid value 'unifrom'; expected 'none' or 'uniform'; did you mean 'uniform'?",
        ),
        ("config=3", "config: should be a mapping of keys to values, not 3"),
        ("config.x=1", "x is searched, so this has no effect"),
        (
            "search.stpes={int: [1, 2]}",
            "search.stpes: the trainable's config has no such path; did you mean 'steps'?",
        ),
        ("search.noise={choice: [a]}", "search.noise: is a group"),
        ("search.x={uniform: [3, 3]}", "search.x.uniform: the range [3, 3] is empty"),
        ("search.x={uniform: [5, 3]}", "search.x.uniform: the range [5, 3] is inverted; expected [3, 5]"),
        ("search.x={uniform: [0]}", "search.x.uniform: invalid range [0]; expected [low, high]"),
        ("search.x={uniform: [0, .inf]}", "out of range; expected a finite number"),
        ("search.x={uniform: [-1e308, 1e308]}", "is too wide"),
        ("search.x={uniform: [a, 1]}", "'a' is not a number"),
        ("search.x={unifrom: [0, 1]}", "search.x.unifrom: unknown key; did you mean 'uniform'?"),
        ("search.x={log_uniform: [0, 1]}", "a logarithmic range must start above 0, not at 0"),
        ("search.x={uniform: [0, 1], log: true}", "for fractional numbers use log_uniform"),
        (
            "search.x={uniform: [0, 1], int: [0, 1]}",
            "expected one distribution of uniform, log_uniform, int, choice",
        ),
        ("search.x={}", "found none"),
        ("search.x=3", "search.x: invalid distribution 3; expected for example {uniform: [0, 1]}"),
        ("search.x={choice: []}", "invalid list []; expected [first, second, ...]"),
        ("search.x={choice: [1, 1.0]}", "1.0 is given twice"),
        ("search.x={choice: [[1]]}", "[1] is not a plain value"),
        ("search.steps={int: [1, 8], log: true, step: 2}", "log and step cannot be combined"),
        (
            "search.steps={int: [1, 8], step: 0}",
            "search.steps.step: should be greater than or equal to 1, not 0",
        ),
        ("search.steps={int: [1, 8], step: 9}", "step 9 is larger than the range [1, 8]"),
        ("search.steps={int: [1.5, 8]}", "[1.5, 8] are not whole numbers"),
        ("search.steps={int: [1, 9]}", "search.steps: should be less than or equal to 8, not 9"),
        ("search={}", "search: no path is searched"),
        ("search=null", "search: should be a mapping of keys to values, not null"),
        ("finals=none", "finals: should be a mapping of keys to values, not 'none'; null leaves it out"),
        (
            "objective.metric=val/scoer",
            "the trainable has no metric 'val/scoer' with this config; did you mean 'val/score'?",
        ),
        ("objective.mode=min", "val/score is better when it is higher; write max"),
        ("objective=[]", "objective: expected at least one metric"),
        ("objective=[{metric: val/score}, {metric: val/score}]", "'val/score' is given twice"),
        (
            "constraints=[{metric: val/scoer, at_most: 1}]",
            "constraints.0.metric: the trainable has no metric 'val/scoer' with this config; did you mean",
        ),
        ("constraints={metric: rats, at_most: 1}", "constraints.metric: the trainable has no metric 'rats'"),
        ("constraints=[{metric: rate}]", "constraints.0: rate has no bound; give at_most or at_least"),
        ("constraints=[{metric: rate, most: 1}]", "constraints.0.most: unknown key; did you mean 'at_most'?"),
        (
            "constraints=[{metric: rate, at_most: 1, at_least: 2}]",
            "constraints.0: at_least is 2, above at_most, 1",
        ),
        (
            "constraints=[{metric: rate, at_most: 3}, {metric: rate, at_least: 2}]",
            "constraints.1.metric: 'rate' is given twice; give both bounds in one constraint",
        ),
        ("constraints=[{metric: rate, at_most: fast}]", "at_most: should be a number, not 'fast'"),
        ("constraints=3", "constraints: should be a list, not 3"),
        ("sampler=tep", "unknown sampler 'tep'; did you mean 'tpe'?"),
        ("sampler=grid", "brute_force tries every combination instead"),
        ("sampler=tests.support:Tpe", "module 'tests.support' has no 'Tpe'"),
        (
            "sampler=optuna.sampler:TPESampler",
            "there is no module 'optuna.sampler'; did you mean 'optuna.samplers'?",
        ),
        ("sampler=optuna.samplers:TPESample", "has no 'TPESample'; did you mean 'TPESampler'?"),
        (
            "sampler=optuna.pruners:NopPruner",
            "'optuna.pruners:NopPruner' is not a subclass of optuna's BaseSampler",
        ),
        ("sampler=json:dumps", "'json:dumps' is not a subclass of optuna's BaseSampler"),
        ("sampler={tpe: {sede: 1}}", "sampler.tpe.sede: unknown key; did you mean 'seed'?"),
        ("sampler={tpe: {seed: one}}", "sampler.tpe.seed: should be a whole number, not 'one'"),
        ("sampler={tpe: {seed: 1.0}}", "sampler.tpe.seed: should be a whole number, not 1.0"),
        ("sampler={tpe: {group: true, multivariate: false}}", "sampler: tpe: "),
        ("sampler={tpe: 3}", "invalid arguments of tpe: 3; expected for example {tpe: {seed: 0}}"),
        ("scheduler=ahsa", "unknown scheduler 'ahsa'; did you mean 'asha'?"),
        ("scheduler=optuna.samplers:TPESampler", "is not a subclass of optuna's BasePruner"),
        ("scheduler.asha.grase=1", "scheduler.asha.grase: unknown key; did you mean 'grace'?"),
        ("scheduler.asha.reduction=1", "should be greater than or equal to 2, not 1"),
        ("resources.workers=0", "resources.workers: should be greater than or equal to 1, not 0"),
        ("resources.gpus=-1", "resources.gpus: should be greater than or equal to 0, not -1"),
        ("resources.gpus=1.5", "should be a whole number or a share below 1"),
        ("resources.concurrent=some", "invalid value 'some'; expected auto, or a whole number above 0"),
        (
            "resources.report_timeout=90",
            "resources.report_timeout: invalid duration 90; expected for example",
        ),
        (
            "resources={silence: 1h, report_timeout: 1h}",
            "resources: silence is the old name of report_timeout",
        ),
        ("enqueue=3", "enqueue: should be a mapping of keys to values, not 3"),
        ("enqueue.paper=3", "enqueue.paper: should be a mapping of keys to values, not 3"),
        ("enqueue.paper={}", "enqueue.paper: empty point; expected at least one {searched path: value}"),
        ("enqueue={a/b: {x: 1}}", "enqueue.a/b: invalid name of a point; expected at most 64 letters"),
        ("enqueue.paper.z=1", "enqueue.paper.z: no such path is searched; valid: noise.width, x"),
        ("enqueue.paper.noise.widht=1", "no such path is searched; did you mean 'noise.width'?"),
        ("enqueue.paper.noise={width: 1}", "enqueue.paper.noise: is a group; give the searched values in it"),
        (
            "enqueue.paper.noise.kind=none",
            "enqueue.paper.noise.kind: is not searched but fixed at 'uniform'; search it, or change it",
        ),
        ("enqueue.paper.y=1", "enqueue.paper.y: is not searched but fixed at 0.0; search it"),
        ("enqueue.paper.x=9", "enqueue.paper.x: 9 is not searched; expected -5 to 5"),
        ("enqueue.paper.x=true", "enqueue.paper.x: true is not searched; expected -5 to 5"),
        ("enqueue.paper.x=.nan", "enqueue.paper.x: nan is not searched; expected -5 to 5"),
        ("config={noise.kind: uniform}", "config.noise.kind: unknown key; write noise: {kind: ...}"),
        ("enqueue.paper.x=wide", "enqueue.paper.x: 'wide' is not a number"),
        ("enqueue.paper.x=[1]", "enqueue.paper.x: [1] is not searched; expected -5 to 5"),
        ("warm_start=3", "warm_start: should be a list, not 3"),
        (
            "warm_start=[3]",
            "warm_start.0: invalid sweep 3; expected the name of a sweep, or mlflow:EXPERIMENT",
        ),
        ("warm_start=[a, Up]", "warm_start.1: invalid sweep 'Up'"),
        ("warm_start=../up", "warm_start: invalid sweep '../up'"),
        ("warm_start=['mlflow: ']", "warm_start.0: invalid sweep 'mlflow: '"),
        (
            "warm_start=[optuna:a]",
            "invalid sweep 'optuna:a'; expected the name of a sweep, or mlflow:EXPERIMENT",
        ),
        ("warm_start=[a, 'mlflow:a', a]", "warm_start: 'a' is given twice; keep one of them"),
        ("warm_start=['mlflow:a', 'mlflow: a']", "warm_start: 'mlflow:a' is given twice"),
        ("warm_start=[a, parabola]", "warm_start.1: parabola is this sweep itself, which keeps its trials"),
        ("warm_start=parabola", "warm_start: parabola is this sweep itself"),
        ("registry.model=a/b", "registry.model: invalid name 'a/b'; expected letters"),
        ("registry.alias=v3", "MLflow reserves the alias 'v3'"),
        ("storage=gs://bucket/sweeps", "sweeps are kept in a folder or in a bucket"),
        ("storage=s3://Bucket", "storage: invalid address 's3://Bucket'; expected s3://bucket/prefix"),
        ("storage=s3://bucket/sweeps", "storage: a bucket needs an MLflow server; give tracking.uri"),
        ("storage=~no-such-user/x", "unknown user in '~no-such-user/x'"),
        ("storage=3", "storage: invalid storage 3; expected for example ~/reid-sweeps"),
        ("study=postgresql://me:secret@host/db", "invalid database 'postgresql://me:...@host/db'"),
        ("scheduler=ASHA", "unknown scheduler 'ASHA'; did you mean 'asha'?"),
        ("search.x={uniform: [0, 0.5], step: 0.1}", "log and step belong to int; for fractional numbers use"),
        ("storage=${ROOM", "is not of the form ${NAME} or ${NAME:-default}"),
        ("budget", "expected --set path=value"),
        ("budget..trials=1", "'budget..trials' is not a valid path"),
        ("budget.trials=[1", "--set budget.trials=[1: expected ',' or ']'"),
        ("trainable=example_trainable", "invalid name 'example_trainable'; expected package.module:Class"),
        (
            "trainable=tests.support.example_trainabel:X",
            "no module 'tests.support.example_trainabel'; did you mean 'tests.support.example_trainable'?",
        ),
        (
            "trainable=tests.support.example_trainable:Example",
            "has no 'Example'; did you mean 'ExampleTrainable'?",
        ),
        (
            "trainable=orchestrator.confg:X",
            "there is no module 'orchestrator.confg'; did you mean 'orchestrator.config'?",
        ),
        (
            "trainable=tests.support.example_trainable:ExampleConfig",
            "is not a valid trainable: it has no 'prepare'",
        ),
        ("trainable=json:dumps", "'json:dumps' is not a class"),
    ],
)
def test_read_sweep_invalid_override_is_named_first(file: Path, override: str, expected: str) -> None:
    line = error_line(file, override)
    assert expected in line
    assert line.startswith(f"--set {override}")


@pytest.mark.parametrize(
    ("search", "point", "expected"),
    [
        (
            {"steps": {"int": [1, 8], "step": 3}},
            {"steps": 5},
            "steps: 5 is not searched; expected 1 to 7 in steps of 3",
        ),
        ({"steps": {"int": [1, 8]}}, {"steps": 2.5}, "steps: 2.5 is not searched; expected 1 to 8"),
        (
            {"fault": {"choice": ["none", "crash"]}},
            {"fault": "crahs"},
            "fault: 'crahs' is not searched; expected none, crash; did you mean 'crash'?",
        ),
        (
            {"y": {"uniform": [0, 1], "when": {"seed": 3}}},
            {"y": 0.5},
            "y: is searched only when seed is 3; it is fixed at 0",
        ),
        (
            {"seed": {"int": [0, 9]}, "y": {"uniform": [0, 1], "when": {"seed": [1, 2]}}},
            {"y": 0.5, "seed": 3},
            "y: is searched only when seed is 1 or 2; it is 3 here",
        ),
        (
            {
                "seed": {"int": [0, 9]},
                "x": {"uniform": [0, 1], "when": {"seed": [1, 2]}},
                "y": {"uniform": [0, 1], "when": {"seed": [3]}},
            },
            {"x": 0.5, "y": 0.5},
            "y: is searched only when seed is 3; the other values need another seed",
        ),
        (
            {
                "seed": {"int": [0, 9]},
                "steps": {"int": [1, 8], "when": {"seed": 1}},
                "y": {"uniform": [0, 1], "when": {"steps": 2}},
            },
            {"y": 0.5, "seed": 3},
            "y: is searched only when steps is 2, which is searched only when seed is 1; it is 3 here",
        ),
    ],
)
def test_read_sweep_point_outside_the_space_is_one_line(
    file: Path, search: dict[str, object], point: dict[str, object], expected: str
) -> None:
    tree = yaml.safe_load(SWEEP) | {"search": search, "enqueue": {"paper": point}}
    file.write_text(yaml.safe_dump(tree))
    assert error_line(file).partition(": ")[2] == f"enqueue.paper.{expected}"


def test_read_sweep_point_with_possible_condition_is_read(file: Path) -> None:
    search = {"seed": {"int": [0, 9]}, "y": {"uniform": [0, 1], "when": {"seed": [1, 2]}}}
    tree = yaml.safe_load(SWEEP) | {"search": search, "enqueue": {"a": {"y": 1}, "b": {"y": 0, "seed": 2}}}
    file.write_text(yaml.safe_dump(tree))
    assert read_sweep(file, environment={}).enqueue == {"a": {"y": 1.0}, "b": {"y": 0.0, "seed": 2}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lacking:Loose", "extra='forbid'"),
        ("lacking:Wrong", "'metrics' do not map names"),
        ("lacking:Fast", "'throughput' 'speed' is not one of its metrics"),
        ("lacking:Argued", "cannot be instantiated without arguments"),
        ("broken:X", "module 'broken' cannot be imported"),
        (
            "failing:X",
            "'failing' cannot be imported: AttributeError: module 'json' has no attribute 'no_such_name'",
        ),
        ("needing:X", "needs 'no_such_package_at_all', which is not installed"),
    ],
)
def test_load_invalid_trainable_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lacking.py").write_text(
        "from tests.support.example_trainable import *\n"
        "class Loose(ExampleTrainable):\n    class Config(ExampleConfig):\n"
        "        model_config = {'extra': 'ignore'}\n"
        "class Wrong(ExampleTrainable):\n    metrics = {'a': 'up'}\n"
        "class Fast(ExampleTrainable):\n    throughput = 'speed'\n"
        "class Argued(ExampleTrainable):\n    def __init__(self, a): pass\n"
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "failing.py").write_text("import json\njson.no_such_name\n")
    (tmp_path / "needing.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(InputError) as error:
        load(name)
    assert expected in str(error.value)


def reads_or_one_line(path: Path) -> None:
    try:
        read_sweep(path, environment={})
    except InputError as error:
        assert str(error).isprintable() and str(error).startswith(str(path))


PIECES = st.sampled_from(
    [
        *"{}[]:,&*!|>'\"#%@`-?\n\t ~",
        "<<: ",
        "!!binary ",
        "&a ",
        "*a",
        "---\n",
        "...\n",
        ".inf",
        ".nan",
        "1e999",
        "${",
        "${X}",
        "null",
        "\\x00",
        '"\\ud800"',
        "🙂",
        "\x00",
        "\x85",
    ]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(SWEEP)), st.integers(0, 6), PIECES), min_size=1, max_size=4)
)
def test_read_sweep_damaged_text_is_read_or_refused_in_one_line(
    tmp_path: Path, cuts: list[tuple[int, int, str]]
) -> None:
    text = SWEEP
    for start, length, piece in cuts:
        text = text[:start] + piece + text[start + length :]
    path = tmp_path / "mutilated.yaml"
    path.write_text(text, newline="")
    reads_or_one_line(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("1e400"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), value=VALUES, delete=st.booleans())
def test_read_sweep_mutated_document_is_read_or_refused_in_one_line(
    tmp_path: Path, seed: int, value: object, delete: bool
) -> None:
    tree, choose = yaml.safe_load(SWEEP), random.Random(seed)
    mapping = tree
    key = choose.choice(list(mapping))
    while isinstance(mapping[key], dict) and mapping[key] and choose.random() < 0.7:
        mapping = mapping[key]
        key = choose.choice(list(mapping))
    if delete:
        del mapping[key]
    else:
        mapping[key] = value
    path = tmp_path / "mutated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False))
    reads_or_one_line(path)
