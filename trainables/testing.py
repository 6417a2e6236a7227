"""Conformance checks for components: what the training loop relies on, one function for each kind.

Each takes a component's name and options as a config has them. It raises AssertionError with one line that
says what is wrong, or what the component itself raises: DataError of a reader, and ValueError of options or a
network that are not valid. Call it from a test::

    def test_jitter_method_conforms():
        check_method("my_methods:JitterMethod", {"amplitude": 0.1})
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.components import Options, check_options
from trainables.data.augmentation import AugmentationConfig, build_augmentation, find_augmentation
from trainables.data.batch import Batch
from trainables.data.decoding import decode
from trainables.data.readers import find_reader, read_checked
from trainables.data.sampling import BatchSampler, Clip, find_sampler
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Split
from trainables.errors import DataError
from trainables.export.encoder_module import check_portable
from trainables.methods import Method, MethodConfig, build_method, find_method
from trainables.methods.joint import JointMethod
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.encoders import EncoderConfig, build_encoder, check_shapes, find_encoder

__all__ = ["check_augmentation", "check_encoder", "check_method", "check_reader", "check_sampler"]

_HEIGHT, _WIDTH, _FEATURES = 32, 16, 16


def check_method(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Check a training method: losses, a gradient for every parameter, repeatability, checkpoints.

    Args:
        name: as ``method`` in a config.
        options: as ``method_options`` in a config.
    """
    component = find_method(name)
    network = NetworkConfig.model_validate(
        {
            "encoder": {"name": "residual", "features": _FEATURES},
            "rnn": {"hidden_size": _FEATURES},
            "height": _HEIGHT,
            "width": _WIDTH,
        }
    )
    config = MethodConfig(network=network, options=_checked_options(component, options))
    batch = _batch(images=component.uses_images)
    for phase in (0, 1) if issubclass(component, JointMethod) else (1,):
        method, losses = _first_step(name, config, batch, phase)
        _check_losses(component, config, losses, phase)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        _check_gradients(method, f"in phase {phase} ")
        assert method.frames(batch) > 0, f"frames() is not positive in phase {phase}"
        _, repeated = _first_step(name, config, batch, phase)
        for term, value in losses.items():
            assert torch.equal(value, repeated[term]), f"{term!r} differs under the same seed"
    assert isinstance(method.embedder, SequenceEmbedder), "embedder is not a SequenceEmbedder"
    build_method(name, config, 2, 2).load_state_dict(method.state_dict())


def check_encoder(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Check a frame encoder: shapes, a gradient for every parameter, repeatability, export.

    Args:
        name: as ``encoder.name`` in a config.
        options: as ``encoder.options`` in a config.
    """
    checked = _checked_options(find_encoder(name), options)
    config = EncoderConfig(name=name, features=_FEATURES, options=checked)
    assert EncoderConfig.model_validate_json(config.model_dump_json()) == config, "JSON changes the config"
    check_portable(name)
    for channels in (3, 5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_encoder(config, channels, _HEIGHT, _WIDTH)
            torch.manual_seed(0)
            repeated = build_encoder(config, channels, _HEIGHT, _WIDTH)
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, repeated.state_dict()[key]), f"{key} differs under the same seed"
        assert isinstance(encoder.layers, nn.Module), "layers is not a module"
        frames = torch.rand(3, channels, _HEIGHT, _WIDTH, generator=torch.Generator().manual_seed(0))
        try:
            features = check_shapes(encoder, frames, _FEATURES)
        except ValueError as error:
            raise AssertionError(str(error)) from error
        features.square().sum().backward()  # type: ignore[no-untyped-call]
        _check_gradients(encoder)
        encoder.eval()
        alone, together = encoder(frames[1:2]), encoder(frames)[1:2]
        assert torch.allclose(alone, together, atol=1e-4), "in evaluation, a feature depends on other frames"


def check_reader(layout: str, folder: Path, options: Mapping[str, Any] | None = None) -> None:
    """Check a data set reader on a set in its layout.

    Args:
        layout: as ``data.sets.NAME.layout`` in a config.
        folder: the folder of the set.
        options: as ``data.sets.NAME.options`` in a config.
    """
    component = find_reader(layout)
    checked = _checked_options(component, options)
    assert component.expected.startswith("expected "), "the text of expected does not begin with 'expected '"
    with tempfile.TemporaryDirectory() as empty:
        assert not component().recognise(Path(empty)), "recognise() is true of an empty folder"
    data_set = read_checked(layout, folder, "name", checked)
    assert data_set == read_checked(layout, folder, "name", checked), "a second read() differs"
    assert (data_set.name, data_set.kind) == ("name", component.kind), "name or kind of the result is wrong"
    assert data_set.tracklets and data_set.splits, "there are no tracklets or no splits"
    for tracklet in data_set.tracklets:
        assert tracklet.frames, f"a tracklet of {tracklet.identity!r} has no frames"
        assert len(tracklet.frames) == 1 or component.kind == "sequence", "a still image has several frames"
        assert decode(tracklet.frames[0]).shape[2] == 3
    for split in data_set.splits:
        _check_split(data_set, split)


def check_sampler(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Check a batch sampler: sizes of batches and clips, repeatability by seed and epoch.

    Args:
        name: as ``batch.sampler`` in a config.
        options: as ``batch.sampler_options`` in a config.
    """
    component = find_sampler(name)
    checked = _checked_options(component, options)
    tracklets = np.arange(60) + 100
    identities = np.array([str(i // 6) for i in range(60)])
    cameras = np.array([str(i % 3) for i in range(60)])
    lengths = np.arange(60) % 12 + 1

    def sampler(seed: int = 0, per_batch: int = 4) -> BatchSampler:
        return component(
            tracklets,
            identities,
            cameras,
            lengths,
            per_batch=per_batch,
            per_identity=3,
            frames=8,
            seed=(seed,),
            options=checked,
        )

    assert sampler().batches_per_pass() >= 1, "batches_per_pass() is not positive"
    plan = sampler().epoch(1, 5)
    assert [len(clips) for clips in plan] == [12] * 5, "epoch(1, 5) does not return 5 batches of P x K clips"
    clips = [clip for batch in plan for clip in batch]
    assert [clip.number for clip in clips] == list(range(60)), "clips are not numbered through the epoch"
    for clip in clips:
        assert clip.tracklet in tracklets, f"{clip.tracklet} is not one of the tracklets"
        assert clip.frames.shape == (8,), f"a clip has frames of shape {clip.frames.shape}"
        length = lengths[clip.tracklet - 100]
        assert ((clip.frames >= 0) & (clip.frames < length)).all(), "a frame is outside of its tracklet"
    used = sampler()
    used.epoch(2, 5)
    assert _plain(used.epoch(1, 5)) == _plain(plan), "an epoch depends on the epochs before it"
    assert _plain(sampler().epoch(2, 5)) != _plain(plan), "two epochs are the same"
    assert _plain(sampler(seed=1).epoch(1, 5)) != _plain(plan), "two seeds give the same batches"
    try:
        sampler(per_batch=11)
    except DataError:
        return
    raise AssertionError("a batch of more identities than there are does not raise DataError")


def check_augmentation(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Check an augmentation: shapes and types, repeatability by seed and number, unchanged arguments.

    Args:
        name: as ``augmentation.name`` in a config.
        options: as ``augmentation.options`` in a config.
    """
    config = AugmentationConfig(
        name=name, options=_checked_options(find_augmentation(name), options), erase=0.5
    )
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, _HEIGHT, _WIDTH, 3), np.uint8)
    flow = rng.normal(size=(5, _HEIGHT, _WIDTH, 2)).astype(np.float32)
    for item in (frames, flow):
        item.flags.writeable = False  # frames are views of a memory-mapped file
    used = build_augmentation(config, (0, 1))
    for number in range(8):
        changed, changed_flow = used(frames, flow, number)
        assert (changed.shape, changed.dtype) == (frames.shape, frames.dtype), "frames change shape or type"
        assert changed_flow is not None and changed_flow.shape == flow.shape, "flow changes shape"
        assert changed_flow.dtype == flow.dtype, "flow changes type"
        again, none = build_augmentation(config, (0, 1))(frames, None, number)
        assert none is None, "the augmentation adds flow to frames without flow"
        assert np.array_equal(changed, again), "the result depends on more than seed and number"


def _checked_options(component: Any, options: Mapping[str, Any] | None) -> Options:
    """Check the model of a component's options, and return ``options`` as an instance of it."""
    model = component.Options
    assert issubclass(model, Options), f"{component.__name__}.Options is not a subclass of Options"
    checked = check_options(component, options or {})
    assert model.model_validate_json(checked.model_dump_json()) == checked, "JSON changes the options"
    return checked


def _batch(*, images: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sequences = torch.rand(4, 4, 3, _HEIGHT, _WIDTH, generator=generator)
    labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    if not images:
        return Batch(sequences, *labels)
    return Batch(sequences, *labels, torch.rand(4, 3, _HEIGHT, _WIDTH, generator=generator), *labels)


def _first_step(
    name: str, config: MethodConfig, batch: Batch, phase: int
) -> tuple[Method, dict[str, Tensor]]:
    """Return a new method and the losses of its first step in a phase."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = build_method(name, config, 2, 2 if batch.images is not None else 0)
        method.phase = phase
        return method, method(batch)


def _check_losses(
    component: type[Method], config: MethodConfig, losses: Mapping[str, Tensor], phase: int
) -> None:
    assert "loss" in losses, "forward() does not return the total as 'loss'"
    for term, value in losses.items():
        assert value.shape == (), f"{term!r} is not a scalar: {list(value.shape)}"
        assert bool(value.isfinite()), f"{term!r} is not finite"
    names, terms = set(losses) - {"loss"}, component.terms(config)
    if terms is not None:
        assert phase == 0 or names == terms, f"terms() returns {sorted(terms)}, forward() {sorted(names)}"
        assert names <= set(component.possible_terms), (
            f"possible_terms lacks {sorted(names - set(component.possible_terms))}"
        )


def _check_gradients(module: nn.Module, when: str = "") -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{when}{name} has no gradient; data parallelism needs one"
            assert bool(parameter.grad.isfinite().all()), f"{when}the gradient of {name} is not finite"


def _check_split(data_set: DataSet, split: Split) -> None:
    tracklets = data_set.tracklets
    trained = {tracklets[i].identity for i in split.train}
    assert trained, "a split has no train part"
    assert not trained & {JUNK, DISTRACTOR}, "junk or distractors are in the train part"
    both = trained & {tracklets[i].identity for i in (*split.query, *split.gallery)}
    assert not both, f"{sorted(both)[0]!r} is in both train and test part of a split"
    for i in split.query:
        query = tracklets[i]
        assert any(
            tracklets[j].identity == query.identity and tracklets[j].camera != query.camera
            for j in split.gallery
        ), f"a query of {query.identity!r} has no match in another camera of the gallery"


def _plain(plan: Sequence[Sequence[Clip]]) -> list[tuple[int, list[int]]]:
    return [(clip.tracklet, clip.frames.tolist()) for clips in plan for clip in clips]
