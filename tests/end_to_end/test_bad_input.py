"""Every fault of a sweep file is one clear line, and no text whatever leads to anything else."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.sweep import Override, read
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


def line_of(file: Path, *overrides: str) -> str:
    """The one line that the user gets."""
    with pytest.raises(InputError) as caught:
        read(file, [Override.parse(each) for each in overrides], environment={})
    line = str(caught.value)
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
        (b"name: x\n\tbad: 1\n", ":2: found character '\\t'"),
        (b"name: a\nbudget: {trials: 1}\nname: b\n", ":3: name is given twice"),
        (b"budget: {trials: 1,\n trials: 2}\n", ":2: budget.trials is given twice"),
        (ALIAS_BOMB.encode(), ":2: aliases (*name) are not allowed"),
        (b"a: &a [*a]\n", ":1: aliases (*name) are not allowed"),
        (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", ":2: tags (!!python/object/apply:os.system)"),
        (b"a: !own 1\n", ":1: tags (!own) are not allowed"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"1: a\n", ":1: the key 1 is not a word"),
        (b"{a: 1}: b\n", ":1: the key {'a': 1} is not a word"),
        (b"a: " + DEEP.encode(), ":1: nested deeper than 32 levels"),
        (b"a: 1\nb: \xff\xfe\n", ":2: byte 0xff is not UTF-8"),
        (b"a: 1\nb: \0\n", ":2: the character U+0000 is not allowed"),
        (b'a: "\\0"\n', ":1: '\\x00' holds a character that is not text"),
        (b'a: "\\UFFFFFFFF"\n', "not readable as YAML"),
        (b"a: " + b"9" * 5000, "not readable as YAML"),
        (b"a: " + b"x" * (1 << 18), "larger than 256 KiB"),
    ],
)
def test_text_that_is_no_sweep_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert expected in line_of(path)
    assert line_of(path).startswith(str(path))


def test_files_that_cannot_be_read(file: Path) -> None:
    assert line_of(file.with_name("parabolla.yaml")).endswith("no such file; did you mean 'parabola.yaml'?")
    assert line_of(file.parent / "nowhere" / "a.yaml").endswith(
        f"folder {file.parent / 'nowhere'} does not exist"
    )
    assert "is a folder" in line_of(file.parent)
    assert "a?b.yaml: there is no such file" in line_of(Path("a\0b.yaml"))
    assert "not a regular file" in line_of(Path("/dev/null"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("name", "name: missing"),
        ("budget", "budget: missing; when to end: {trials: 24}"),
        ("search", "search: missing"),
    ],
)
def test_missing_keys(file: Path, key: str, expected: str) -> None:
    tree = yaml.safe_load(SWEEP)
    del tree[key]
    file.write_text(yaml.safe_dump(tree))
    assert expected in line_of(file)


def test_a_fault_is_placed_at_its_line_or_its_override(file: Path) -> None:
    file.write_text(SWEEP.replace("trials: 4", "trails: 4"))
    assert (
        line_of(file)
        == f"{file}:10: budget.trails: unknown key; did you mean 'trials'? (and 1 more at fault)"
    )
    file.write_text(SWEEP.replace("epochs: 9", "epochs: 0"))
    assert line_of(file) == f"{file}:3: config.epochs: should be greater than or equal to 1, not 0"
    file.write_text(SWEEP.replace("[-5, 5]", "[-5, 50]"))
    assert line_of(file) == f"{file}:5: search.x: should be less than or equal to 10, not 50.0"
    file.write_text(SWEEP.replace("/tmp/sweeps", "${REID_ROOM}/sweeps"))
    assert line_of(file).startswith(f"{file}:13: storage: the environment variable REID_ROOM is not set")
    file.write_text(SWEEP)
    with pytest.raises(
        InputError, match=r"^--trials 0: budget\.trials: should be greater than or equal to 1"
    ):
        read(file, [Override("budget.trials", 0, "--trials 0")])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.trials=0", "budget.trials: should be greater than or equal to 1, not 0"),
        ("budget.trials=few", "budget.trials: should be a whole number, not 'few'"),
        ("budget.trials=true", "budget.trials: should be a number, not true"),
        ("budget.trials=2.5", "budget.trials: should be a whole number, not 2.5"),
        ("budget.wall=90", "budget.wall: 90 is no duration; write 90s, 30m, 2h or 1d"),
        ("budget.wall=0m", "leaves no time"),
        ("nmae=x", "nmae: unknown key; did you mean 'name'?"),
        ("name=../up", "name: '../up' is no name"),
        ("name.first=x", "name is 'parabola' and has no 'first'"),
        ("config.epohcs=2", "config.epohcs: unknown key; did you mean 'epochs'?"),
        ("config.noise.kin=none", "config.noise.kin: unknown key; did you mean 'kind'?"),
        ("config.noise.kind=unifrom", "'unifrom' is none of 'none' or 'uniform'; did you mean 'uniform'?"),
        ("config=3", "config: should be a mapping of keys to values, not 3"),
        ("config.x=1", "x is searched, so this has no effect"),
        (
            "search.stpes={int: [1, 2]}",
            "search.stpes: the trainable's config has no such path; did you mean 'steps'?",
        ),
        ("search.noise={choice: [a]}", "search.noise: is a group"),
        ("search.x={uniform: [3, 3]}", "search.x.uniform: the range [3, 3] is empty"),
        ("search.x={uniform: [5, 3]}", "search.x.uniform: the range [5, 3] is inverted; write [3, 5]"),
        ("search.x={uniform: [0]}", "search.x.uniform: [0] is no range; write [low, high]"),
        ("search.x={uniform: [0, .inf]}", "out of range; write a finite number"),
        ("search.x={uniform: [-1e308, 1e308]}", "is too wide"),
        ("search.x={uniform: [a, 1]}", "'a' is not a number"),
        ("search.x={unifrom: [0, 1]}", "search.x.unifrom: unknown key; did you mean 'uniform'?"),
        ("search.x={log_uniform: [0, 1]}", "a logarithmic range must begin above 0, not at 0"),
        ("search.x={uniform: [0, 1], log: true}", "a logarithmic range of numbers is log_uniform"),
        (
            "search.x={uniform: [0, 1], int: [0, 1]}",
            "give one distribution of uniform, log_uniform, int, choice",
        ),
        ("search.x={}", "found none"),
        ("search.x=3", "search.x: 3 is no distribution"),
        ("search.x={choice: []}", "[] is no choice"),
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
        ("search={}", "search: nothing is searched"),
        ("search=null", "search: should be a mapping of keys to values, not null"),
        ("objective.metric=val/scoer", "the trainable reports no 'val/scoer'; did you mean 'val/score'?"),
        ("objective.mode=min", "val/score is better the higher it is; write max"),
        ("objective=[]", "objective: name at least one metric"),
        ("objective=[{metric: val/score}, {metric: val/score}]", "'val/score' is given twice"),
        ("sampler=tep", "unknown sampler 'tep'; did you mean 'tpe'?"),
        ("sampler=grid", "brute_force tries every combination instead"),
        ("sampler={tpe: {sede: 1}}", "tpe has no argument 'sede'; did you mean 'seed'?"),
        ("sampler={tpe: {seed: one}}", "tpe's seed should be a valid integer, not 'one'"),
        ("sampler={tpe: {group: true, multivariate: false}}", "sampler: tpe: "),
        ("sampler={tpe: 3}", "3 are no arguments of tpe"),
        ("scheduler=ahsa", "unknown scheduler 'ahsa'; did you mean 'asha'?"),
        ("scheduler.asha.grase=1", "scheduler.asha.grase: unknown key; did you mean 'grace'?"),
        ("scheduler.asha.reduction=1", "should be greater than or equal to 2, not 1"),
        ("resources.workers=0", "resources.workers: should be greater than or equal to 1, not 0"),
        ("resources.gpus=-1", "resources.gpus: should be greater than or equal to 0, not -1"),
        ("resources.gpus=1.5", "should be a whole number or a share below 1"),
        ("resources.concurrent=some", "'some' is neither auto nor a number of trials"),
        ("enqueue=3", "enqueue: should be a mapping of keys to values, not 3"),
        ("enqueue.paper=3", "enqueue.paper: should be a mapping of keys to values, not 3"),
        ("enqueue.paper={}", "enqueue.paper: holds no value; give at least one, {searched path: value}"),
        ("enqueue={a/b: {x: 1}}", "enqueue.a/b: is no name of a point; use at most 64 letters"),
        ("enqueue.paper.z=1", "enqueue.paper.z: no such path is searched; valid: noise.width, x"),
        ("enqueue.paper.noise.widht=1", "no such path is searched; did you mean 'noise.width'?"),
        ("enqueue.paper.noise={width: 1}", "enqueue.paper.noise: is a group; give the searched values in it"),
        (
            "enqueue.paper.noise.kind=none",
            "enqueue.paper.noise.kind: is not searched but fixed at 'uniform'; search it, or change it",
        ),
        ("enqueue.paper.y=1", "enqueue.paper.y: is not searched but fixed at 0.0; search it"),
        ("enqueue.paper.x=9", "enqueue.paper.x: 9 is not among what is searched: -5 to 5"),
        ("enqueue.paper.x=true", "enqueue.paper.x: true is not among what is searched: -5 to 5"),
        ("enqueue.paper.x=.nan", "enqueue.paper.x: nan is not among what is searched: -5 to 5"),
        ("enqueue.paper.x=wide", "enqueue.paper.x: 'wide' is not a number"),
        ("enqueue.paper.x=[1]", "enqueue.paper.x: [1] is not among what is searched"),
        ("warm_start=3", "warm_start: should be a list, not 3"),
        ("warm_start=[3]", "warm_start.0: 3 is no sweep; write the name of one, or mlflow:EXPERIMENT"),
        ("warm_start=[a, Up]", "warm_start.1: 'Up' is no sweep"),
        ("warm_start=../up", "warm_start: '../up' is no sweep"),
        ("warm_start=['mlflow: ']", "warm_start.0: 'mlflow: ' is no sweep"),
        ("warm_start=[optuna:a]", "'optuna:a' is no sweep; write the name of one, or mlflow:EXPERIMENT"),
        ("warm_start=[a, 'mlflow:a', a]", "warm_start: 'a' is given twice; keep one of them"),
        ("warm_start=['mlflow:a', 'mlflow: a']", "warm_start: 'mlflow:a' is given twice"),
        ("warm_start=[a, parabola]", "warm_start.1: parabola is this sweep itself, whose trials are kept"),
        ("warm_start=parabola", "warm_start: parabola is this sweep itself"),
        ("registry.model=a/b", "registry.model: 'a/b' is no name"),
        ("registry.alias=v3", "'v3' is reserved by MLflow"),
        ("storage=gs://bucket/sweeps", "sweeps are kept in a folder or in a bucket"),
        ("storage=s3://Bucket", "is no place in a bucket; write s3://bucket/prefix"),
        ("storage=s3://bucket/sweeps", "storage: a bucket needs an MLflow server beside it"),
        ("storage=~no-such-user/x", "there is no such user"),
        ("storage=3", "storage: 3 is no storage"),
        ("storage=${ROOM", "is not of the form ${NAME} or ${NAME:-default}"),
        ("budget", "write --set path=value"),
        ("budget..trials=1", "'budget..trials' is no path"),
        ("budget.trials=[1", "--set budget.trials=[1: expected ',' or ']'"),
        ("trainable=tests.support.example_trainable", "write it as package.module:Class"),
        (
            "trainable=tests.support.example_trainabel:X",
            "there is no module 'tests.support.example_trainabel'; did you mean 'example_trainable'?",
        ),
        (
            "trainable=tests.support.example_trainable:Example",
            "has no 'Example'; did you mean 'ExampleTrainable'?",
        ),
        ("trainable=orchestrator.confg:X", "there is no module 'orchestrator.confg'; did you mean 'config'?"),
        ("trainable=tests.support.example_trainable:ExampleConfig", "is no trainable: it has no 'prepare'"),
        ("trainable=json:dumps", "'json:dumps' is not a class"),
    ],
)
def test_each_fault_is_one_line_that_begins_with_its_override(
    file: Path, override: str, expected: str
) -> None:
    line = line_of(file, override)
    assert expected in line
    assert line.startswith(f"--set {override}")


@pytest.mark.parametrize(
    ("search", "point", "expected"),
    [
        (
            {"steps": {"int": [1, 8], "step": 3}},
            {"steps": 5},
            "steps: 5 is not among what is searched: 1 to 7 in steps of 3",
        ),
        ({"steps": {"int": [1, 8]}}, {"steps": 2.5}, "steps: 2.5 is not among what is searched: 1 to 8"),
        (
            {"fault": {"choice": ["none", "crash"]}},
            {"fault": "crahs"},
            "fault: 'crahs' is not among what is searched: none, crash; did you mean 'crash'?",
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
            "y: is searched only when seed is 3; the others need another",
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
def test_a_point_outside_of_the_space_is_one_line(
    file: Path, search: dict[str, object], point: dict[str, object], expected: str
) -> None:
    tree = yaml.safe_load(SWEEP) | {"search": search, "enqueue": {"paper": point}}
    file.write_text(yaml.safe_dump(tree))
    assert line_of(file).partition(": ")[2] == f"enqueue.paper.{expected}"


def test_a_point_whose_condition_the_sampler_may_meet_is_taken(file: Path) -> None:
    search = {"seed": {"int": [0, 9]}, "y": {"uniform": [0, 1], "when": {"seed": [1, 2]}}}
    tree = yaml.safe_load(SWEEP) | {"search": search, "enqueue": {"a": {"y": 1}, "b": {"y": 0, "seed": 2}}}
    file.write_text(yaml.safe_dump(tree))
    assert read(file, environment={}).enqueue == {"a": {"y": 1.0}, "b": {"y": 0.0, "seed": 2}}


def test_a_trainable_that_breaks_the_contract_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    (tmp_path / "needing.py").write_text("import no_such_package_at_all\n")
    for name, expected in {
        "lacking:Loose": "extra='forbid'",
        "lacking:Wrong": "'metrics' do not map names",
        "lacking:Fast": "'throughput' 'speed' is not among",
        "lacking:Argued": "cannot be made without arguments",
        "broken:X": "module 'broken' cannot be imported",
        "needing:X": "needs 'no_such_package_at_all', which is not installed",
    }.items():
        with pytest.raises(InputError) as caught:
            load(name)
        assert expected in str(caught.value)


def reads_or_one_line(path: Path) -> None:
    try:
        read(path, environment={})
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(SWEEP)), st.integers(0, 6), PIECES), min_size=1, max_size=4)
)
def test_any_mutilated_text_reads_or_is_one_line(tmp_path: Path, cuts: list[tuple[int, int, str]]) -> None:
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), value=VALUES, delete=st.booleans())
def test_any_mutated_tree_reads_or_is_one_line(
    tmp_path: Path, seed: int, value: object, delete: bool
) -> None:
    tree, choose = yaml.safe_load(SWEEP), random.Random(seed)
    here = tree
    key = choose.choice(list(here))
    while isinstance(here[key], dict) and here[key] and choose.random() < 0.7:
        here = here[key]
        key = choose.choice(list(here))
    if delete:
        del here[key]
    else:
        here[key] = value
    path = tmp_path / "mutated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False))
    reads_or_one_line(path)
