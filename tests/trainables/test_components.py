"""Components of every kind: conformance of the built-in ones, and the worked examples of the guide."""

import json
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support.paths import EXAMPLES, ROOT
from tests.support.recorder import Recorder
from tests.support.tiny_sets import save_image
from trainables import components, testing
from trainables.config import AlignmentConfig
from trainables.data.__main__ import main
from trainables.data.augmentation import AUGMENTATIONS, StandardAugmentation
from trainables.data.readers import read
from trainables.data.sampling import SAMPLERS, BatchSampler, Clip
from trainables.errors import DataError
from trainables.methods import METHODS, Method
from trainables.network.encoders import ENCODERS

FILES = {
    "method": "my_methods.py",
    "loss": "my_losses.py",
    "arcface": "my_arcface.py",
    "encoder": "my_encoders.py",
    "reader": "my_readers.py",
    "sequence reader": "my_sequences.py",
    "sampler": "my_samplers.py",
    "augmentation": "my_augmentations.py",
}
METHOD = {"method": "my_methods:JitterMethod", "method_options": {"amplitude": 0.25}}
ENCODER = {"name": "my_encoders:PatchEncoder", "options": {"channels": 24}}
SAMPLER = {"sampler": "my_samplers:WeightedSampler", "sampler_options": {"power": 1}}
AUGMENTATION = {"name": "my_augmentations:BrightnessAugmentation", "options": {"strength": 0.5}}


@pytest.fixture(autouse=True)
def beside_the_config(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def flat(tmp_path):
    for number in range(12):
        save_image(tmp_path / "flat" / f"000{number % 4}-c{number % 3}-{number}.jpg", number)
    return tmp_path / "flat"


@pytest.mark.parametrize("name", METHODS)
def test_method_conforms(name):
    testing.check_method(name)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_conforms(name):
    testing.check_encoder(name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_conforms(name):
    testing.check_sampler(name)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_conforms(name):
    testing.check_augmentation(name)


def test_examples_conform(flat):
    testing.check_method(METHOD["method"], METHOD["method_options"])
    testing.check_method("my_losses:CompactMethod")
    testing.check_method("my_arcface:ArcFaceMethod")
    testing.check_encoder(ENCODER["name"], ENCODER["options"])
    testing.check_reader("my_readers:FlatReader", flat, {"separator": "-"})
    testing.check_sampler(SAMPLER["sampler"], SAMPLER["sampler_options"])
    testing.check_augmentation(AUGMENTATION["name"], AUGMENTATION["options"])


@pytest.mark.parametrize("kind", FILES)
def test_example_of_the_guide_is_the_tested_file(kind):
    guide = ROOT.joinpath("trainables", "README.md").read_text()
    quoted = re.search(rf"<!-- example: {kind} -->\n```python\n(.*?)```", guide, re.DOTALL)
    code = EXAMPLES.joinpath(FILES[kind]).read_text()
    assert quoted[1] == code
    assert len(code.splitlines()) <= 30


def test_example_method_trains_with_its_option(tiny, prepared, tmp_path):
    training = prepared.training(tiny(epochs=1, **METHOD), Recorder(tmp_path / "run"))
    before = training.method.amplitude.detach().clone()
    assert torch.equal(before, torch.full((16,), 0.25))
    training.run()
    assert not torch.equal(before, training.method.amplitude)


def test_example_encoder_trains_and_is_scored(tiny, prepared, tmp_path):
    config, recorder = tiny(epochs=1, encoder=ENCODER), Recorder(tmp_path / "run")
    prepared.check(config, workers=1)
    prepared.fit(config, recorder)
    assert "test/walkers/rank1" in prepared.evaluate(config, recorder.restore())


def test_example_sampler_and_augmentation_train(tiny, prepared, tmp_path):
    config, recorder = tiny(epochs=1, batch=SAMPLER, augmentation=AUGMENTATION), Recorder(tmp_path / "run")
    prepared.fit(config, recorder)
    plain = Recorder(tmp_path / "plain")
    prepared.fit(tiny(epochs=1), plain)
    assert recorder.curve() != plain.curve()


def test_augmentation_that_changes_the_shape_is_refused(tiny, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(
        StandardAugmentation, "__call__", lambda self, frames, flow, number: (frames[:, :9], flow)
    )
    with pytest.raises(
        TypeError, match=r"the augmentation returns frames and flow of shapes and types \[\(\("
    ):
        prepared.fit(tiny(epochs=1), Recorder(tmp_path / "run"))


def test_sampler_with_clips_of_other_lengths_is_refused(tiny, prepared, tmp_path, monkeypatch):
    one_frame = np.zeros(1, np.int64)
    monkeypatch.setattr(
        BatchSampler, "clip", lambda self, position, number, rng: Clip(position, one_frame, number)
    )
    with pytest.raises(TypeError, match=r"the batch sampler returns clips of \[1\] frames, not 4"):
        prepared.fit(tiny(epochs=1), Recorder(tmp_path / "run"))


def test_example_reader_is_trained_on(tiny, prepared, flat, tmp_path):
    source = {"layout": "my_readers:FlatReader", "folder": str(flat), "options": {"separator": "-"}}
    config = tiny(epochs=1, data={"sets": {"flat": source}, "images": ["flat"]})
    prepared.check(config, workers=1)
    [record] = [record for record in prepared.prepare(config) if record.role == "images"]
    assert (record.name, record.counts["identities"], record.counts["cameras"]) == ("flat", 4, 3)
    assert prepared.training(config, Recorder(tmp_path)).batches.images.identities == 4


def test_example_of_a_sequence_reader_conforms(tmp_path):
    for name in (
        "p1_c1_1",
        "p1_c1_2",
        "p1_c2_1",
        "p2_c1_1",
        "p2_c2_1",
        "p3_c1_1",
        "p3_c2_1",
        "p4_c1_1",
        "p4_c2_1",
    ):
        save_image(tmp_path / "set" / name[:2] / f"{name}.png", 1)
    testing.check_reader("my_sequences:NamedReader", tmp_path / "set")
    data_set = read("my_sequences:NamedReader", tmp_path / "set", name="set")
    assert [len(tracklet.frames) for tracklet in data_set.tracklets] == [2, *[1] * 7]
    assert [(len(each.train), len(each.query), len(each.gallery)) for each in data_set.splits] == [
        (4, 2, 2)
    ] * 10


def test_example_reader_is_inspected(flat, capsys):
    assert main(["inspect", "my_readers:FlatReader", str(flat), "--option", "separator=-"]) == 0
    assert "flat: image set" in capsys.readouterr().out


def test_options_survive_a_round_trip_of_the_config(tiny):
    config = tiny(encoder=ENCODER, batch=SAMPLER, augmentation=AUGMENTATION, **METHOD)
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert stored["method_options"] == {"amplitude": 0.25}
    assert stored["encoder"]["options"] == {"channels": 24}
    assert AlignmentConfig.model_validate(stored) == config


def test_options_get_their_defaults(tiny):
    config = tiny(method="my_methods:JitterMethod")
    assert config.method_options.model_dump() == {"amplitude": 0.01}


WRONG = {
    "option": (
        {**METHOD, "method_options": {"amplitud": 1}},
        "method_options",
        "option amplitud: no such option; did you mean 'amplitude'? options: amplitude",
    ),
    "value": (
        {**METHOD, "method_options": {"amplitude": 2}},
        "method_options.amplitude",
        "Input should be less than or equal to 1",
    ),
    "no options": (
        {"method_options": {"amplitude": 0.1}},
        "method_options",
        "option amplitude: no such option; options: none",
    ),
    "encoder option": (
        {"encoder": {**ENCODER, "options": {"channels": 4}}},
        "encoder.options.channels",
        "Input should be greater than or equal to 8",
    ),
    "sampler": (
        {"batch": {"sampler": "identiy"}},
        "batch.sampler",
        "no batch sampler 'identiy'; did you mean 'identity'? expected identity, or package.module:Class",
    ),
    "augmentation": (
        {"augmentation": {"name": "my_augmentations:Brightness"}},
        "augmentation.name",
        "augmentation 'my_augmentations:Brightness': module 'my_augmentations' has no attribute"
        " 'Brightness'; did you mean",
    ),
    "base class": (
        {"encoder": {"name": "my_methods:JitterMethod"}},
        "encoder.name",
        "encoder 'my_methods:JitterMethod' is not a subclass of trainables.network.encoders.Encoder",
    ),
    "abstract": (
        {"method": "trainables.methods:Method"},
        "method",
        "method 'trainables.methods:Method' is abstract; it lacks forward",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_component_is_named_in_one_line(case, tiny):
    changes, field, line = WRONG[case]
    with pytest.raises(ValidationError) as caught:
        tiny(**changes)
    [error] = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert error["msg"].removeprefix("Value error, ").startswith(line)
    assert "\n" not in error["msg"]


def test_module_that_raises_is_named_in_one_line(tmp_path, monkeypatch):
    tmp_path.joinpath("broken_module.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    line = "method 'broken_module:X': cannot import 'broken_module': RuntimeError: two lines"
    with pytest.raises(ValueError, match=f"^{line}$"):
        components.find("method", "broken_module:X", METHODS, Method)


BROKEN = """
from torch import nn
from trainables.data.sampling import BatchSampler
from trainables.data.augmentation import Augmentation
from trainables.methods.sequence import SequenceMethod

class Unused(SequenceMethod):
    def __init__(self, config, sequences, images):
        super().__init__(config, sequences, images)
        self.unused = nn.Linear(2, 2)

class Vague(SequenceMethod):
    def forward(self, batch):
        losses = super().forward(batch)
        return {**losses, "other": losses["loss"]}

class Constant(BatchSampler):
    def epoch(self, epoch, batches):
        rng = self.rng(0)
        size = self.per_batch * self.per_identity
        return [[self.clip(k, b * size + k, rng) for k in range(size)] for b in range(batches)]

class Forgetful(Augmentation):
    def __call__(self, frames, flow, number):
        return frames[:1], flow
"""


@pytest.mark.parametrize(
    ("check", "name", "line"),
    [
        (testing.check_method, "Unused", "unused.weight has no gradient"),
        (testing.check_method, "Vague", r"terms\(\) returns \['video'\], forward\(\) \['other', 'video'\]"),
        (testing.check_sampler, "Constant", "two epochs are the same"),
        (testing.check_augmentation, "Forgetful", "frames change shape or type"),
    ],
)
def test_check_of_broken_component_fails(check, name, line, tmp_path, monkeypatch):
    tmp_path.joinpath("broken_components.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AssertionError, match=line):
        check(f"broken_components:{name}")


def test_encoder_that_cannot_be_exported_is_refused(tiny, prepared, tmp_path, monkeypatch):
    source = EXAMPLES.joinpath("my_encoders.py").read_text()
    tmp_path.joinpath("bound_encoders.py").write_text(f"import trainables.errors\n{source}")
    monkeypatch.syspath_prepend(tmp_path)
    line = (
        "encoder.name: 'bound_encoders:PatchEncoder' cannot be exported: module 'bound_encoders' imports"
        " 'trainables.errors', which an exported model does not have; import installed packages and"
        " trainables.network only"
    )
    with pytest.raises(DataError, match=f"^{re.escape(line)}$"):
        prepared.check(tiny(encoder={"name": "bound_encoders:PatchEncoder"}), workers=1)


def test_reader_that_raises_is_one_line(flat):
    save_image(flat / "misnamed.jpg")
    with pytest.raises(
        DataError, match=r"the reader my_readers:FlatReader failed: .*Error: .*my_readers.py, line"
    ):
        read("my_readers:FlatReader", flat, name="set", separator="-")


def test_encoder_that_raises_is_one_line(tiny, prepared, monkeypatch):
    import my_encoders

    def broken(self, *arguments):
        raise KeyError("oops")

    monkeypatch.setattr(my_encoders.PatchEncoder, "__init__", broken)
    with pytest.raises(
        DataError, match=r"^encoder\.name: my_encoders:PatchEncoder failed: KeyError: .*line \d+"
    ):
        prepared.check(tiny(encoder={**ENCODER, "options": {"channels": 40}}), workers=1)


def test_encoder_of_other_shapes_is_refused_before_training(tiny, prepared, monkeypatch):
    import my_encoders

    project = my_encoders.PatchEncoder.project
    monkeypatch.setattr(my_encoders.PatchEncoder, "project", lambda self, maps: project(self, maps)[:, :5])
    line = r"^encoder\.name: project\(\) returns \[2, 5\]; expected \[2, 16\]: encoder\.features"
    changed = {**ENCODER, "options": {"channels": 48}}
    with pytest.raises(DataError, match=line):
        prepared.check(tiny(encoder=changed), workers=1)
