"""Tests of the methods: pseudo sequences, self-supervision, and the terms of the loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainables.methods import METHODS, Batch, MethodConfig, build_method, find_method
from trainables.methods.alignment import AlignmentMethod, without_dropout
from trainables.methods.alignment_network import CrossModalityConfig
from trainables.methods.feature_level import FeatureAlignment, energy_score
from trainables.network.encoders import ENCODERS

NETWORK = {"rnn": {"hidden_size": 16}, "encoder": {"features": 16}, "height": 32, "width": 24}


def make(
    name: str = "alignment", encoder: str = "mclaughlin2016", flow: str = "none", **alignment: Any
) -> Any:
    torch.manual_seed(0)
    network = NETWORK | {"encoder": {"name": encoder, "features": 16}, "flow": flow}
    config = MethodConfig.model_validate({"network": network, "alignment": alignment})
    return build_method(name, config, sequences=3, images=5)


def batch(images: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    stills = torch.rand(6, 3, 32, 24, generator=generator)
    return Batch(
        sequences=torch.rand(4, 5, 3, 32, 24, generator=generator),
        sequence_identities=torch.tensor([0, 0, 2, 2]),
        sequence_cameras=torch.tensor([0, 1, 0, 1]),
        images=stills if images else None,
        image_identities=torch.tensor([0, 0, 1, 1, 4, 4]) if images else None,
    )


def shake(alignment: FeatureAlignment) -> None:
    """Randomise the last layers of the generators, which start at 0."""
    for generator in (alignment.mgm, alignment.cgm):
        if generator is not None:
            torch.nn.init.normal_(generator.output.weight)
            torch.nn.init.normal_(generator.output.bias)


@torch.no_grad()
def pseudo(method: AlignmentMethod) -> tuple[Tensor, Tensor]:
    """Return pseudo sequences of six images, and the images' own features."""
    method.eval()
    stills = batch().images
    assert stills is not None
    return method.pseudo_steps(stills), method.embedder.encode(stills)


def test_find_method_wrong_name_gives_one_clear_line() -> None:
    for name in METHODS:
        assert make(name)(batch())["loss"].isfinite()
    with pytest.raises(ValueError, match="no method 'aligment'; did you mean 'alignment'"):
        find_method("aligment")
    with pytest.raises(ValueError, match=r"is not a subclass of trainables\.methods\.method\.Method"):
        find_method("trainables.methods:Batch")
    with pytest.raises(ValueError, match="cannot import 'nowhere': ModuleNotFoundError: No module"):
        find_method("nowhere:Method")
    with pytest.raises(ValueError, match=r"method '\.nowhere:Method': cannot import '\.nowhere': ValueError"):
        find_method(".nowhere:Method")
    with pytest.raises(ValueError, match="is abstract; it lacks pseudo_steps"):
        find_method("trainables.methods.joint:JointMethod")


@pytest.mark.parametrize("length", [3, 5, 7])
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_pseudo_steps_middle_is_the_image_itself(encoder: str, length: int) -> None:
    method = make(encoder=encoder, length=length)
    still, features = pseudo(method)
    assert still.shape == (6, length, 16)
    torch.testing.assert_close(still, features.unsqueeze(1).expand_as(still))  # starts motionless
    shake(method.alignment)
    steps, _ = pseudo(method)
    torch.testing.assert_close(steps[:, length // 2], features)
    changes = (steps - features.unsqueeze(1)).flatten(2).norm(dim=2).amin(dim=0)
    assert (changes[torch.arange(length) != length // 2] > 0.01).all()
    assert (steps[:, 0] - steps[:, -1]).norm() > 0.1  # the sign of the offset matters


def test_pseudo_steps_motion_grows_with_the_offset() -> None:
    method = make(length=7, cgm=False)
    shake(method.alignment)
    mgm = method.alignment.mgm
    torch.nn.init.zeros_(mgm.of_offset.weight)
    steps, features = pseudo(method)
    displacements = steps - features.unsqueeze(1)
    torch.testing.assert_close(displacements[:, 6], 3 * displacements[:, 4], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(displacements[:, 6], -displacements[:, 0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "switches, absent", [({"mgm": False}, "motion"), ({"cgm": False}, "content")], ids=["mgm", "cgm"]
)
def test_alignment_module_off_has_no_term_and_parameter(switches: dict[str, Any], absent: str) -> None:
    method = make(**switches)
    terms = method(batch())
    assert absent not in terms and {"motion", "content"} - {absent} <= terms.keys()
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_alignment_modules_off_repeats_the_image() -> None:
    method = make(mgm=False, cgm=False)
    steps, features = pseudo(method)
    torch.testing.assert_close(steps, features.unsqueeze(1).expand_as(steps))
    assert not list(method.alignment.parameters())


WEIGHTS = ("pseudo", "match", "motion", "content", "distribution")


@pytest.mark.parametrize("kind", ["coral", "mmd", "adversarial", "none"])
@pytest.mark.parametrize("zero", WEIGHTS)
def test_alignment_weight_0_skips_only_that_term(zero: str, kind: str) -> None:
    method = make(weights={zero: 0}, distribution={"kind": kind})
    terms = method(batch())
    expected = {"video", *WEIGHTS} - {zero} - ({"distribution"} if kind == "none" else set())
    assert terms.keys() == expected | {"loss"}
    total = terms["video"] + sum(getattr(method.weights, name) * terms[name] for name in expected - {"video"})
    torch.testing.assert_close(terms["loss"], total)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.parametrize("only", ["motion", "content"])
def test_alignment_self_supervision_alone_needs_no_images(only: str) -> None:
    method = make(weights=dict.fromkeys(WEIGHTS, 0) | {only: 1})
    terms = method(batch(images=False))
    assert terms.keys() == {"loss", "video", only}
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_alignment_weights_0_equals_sequence_method() -> None:
    method, baseline = make(weights=dict.fromkeys(WEIGHTS, 0)).eval(), make("sequence").eval()
    baseline.load_state_dict(method.state_dict())
    torch.testing.assert_close(method(batch())["loss"], baseline(batch())["loss"])


def test_alignment_unsuitable_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs images .* \(data.images\)"):
        make()(batch(images=False))
    with pytest.raises(ValueError, match=r"alignment.length is 7, but sequences have 5 frames"):
        make(length=7)(batch())
    with pytest.raises(
        ValidationError, match="must be odd, with the image as the middle step: 3 or 5, not 4"
    ):
        CrossModalityConfig(length=4)


def supervision(method: AlignmentMethod, features: Tensor) -> dict[str, Tensor]:
    frames, maps = torch.zeros(*features.shape[:2], 3, 8, 6), torch.zeros(*features.shape[:2], 32, 8, 6)
    return method.alignment.supervise(frames, maps.to(features.dtype), features, features)


def test_supervise_motionless_guess_scores_1() -> None:
    terms = supervision(make(), torch.randn(4, 6, 16))
    torch.testing.assert_close(terms, {"motion": torch.tensor(1.0), "content": torch.tensor(1.0)})
    assert supervision(make(), torch.ones(4, 6, 16))["motion"] == 0  # real sequences are motionless


def test_supervise_compares_neighbours_at_the_same_offset() -> None:
    method = make(length=5, noise=0).double()
    alignment = method.alignment
    shake(alignment)
    features = torch.randn(2, 6, 16, dtype=torch.float64)
    motion_error = motion_scale = content_error = content_scale = 0.0
    for sequence in features:
        for frame in (2, 3):
            still = sequence[frame].unsqueeze(0)
            context = alignment.context(torch.zeros(1, 32, 8, 6, dtype=torch.float64), still)
            steps = still.unsqueeze(1).expand(-1, 5, -1)
            moved = steps + alignment.motion(context, steps)
            real = torch.stack([sequence[frame + k + 1] - sequence[frame + k] for k in range(-2, 2)])
            motion_error += (moved[0].diff(dim=0) - real).norm().item()
            motion_scale += real.norm().item()
            generated = moved + alignment.content(context, moved)
            content_error += (generated.mean(dim=1) - sequence.mean(dim=0)).square().sum().item()
            content_scale += (still - sequence.mean(dim=0)).square().sum().item()
    terms = supervision(method, features)
    assert terms["motion"].item() == pytest.approx(motion_error / motion_scale, rel=1e-6)
    assert terms["content"].item() == pytest.approx(content_error / content_scale, rel=1e-6)


def test_energy_score_is_least_for_the_real_distribution() -> None:
    torch.manual_seed(0)
    real, floor = torch.randn(20_000, 3), torch.tensor(0.0)

    def score(spread: float, shift: float = 0.0) -> float:
        draw, other = (torch.randn(20_000, 3) * spread + shift for _ in range(2))
        return float(energy_score(draw, other, real, floor))

    assert score(0.0) == pytest.approx(1)
    best = score(1.0)
    assert best < 0.75
    assert all(worse > best + 0.01 for worse in (score(0.5), score(1.6), score(1.0, shift=0.5)))


def test_motion_unpredictable_is_sampled_as_wide_as_real() -> None:
    """Unpredictable changes have a mean of 0, but their spread can be learned."""
    torch.manual_seed(0)
    method = make(length=3, cgm=False)
    alignment = method.alignment
    optimizer = torch.optim.Adam(alignment.parameters(), 0.01)
    axis = torch.nn.functional.normalize(torch.randn(16), dim=0)

    def walk() -> Tensor:
        identities, speed = torch.randn(64, 1, 16), torch.randn(64, 1, 1)
        return identities + torch.arange(-1, 2).view(1, 3, 1) * speed * axis

    def motion(walks: Tensor) -> Tensor:
        term: Tensor = supervision(method, walks)["motion"]
        return term

    for _ in range(200):
        optimizer.zero_grad()
        motion(walk()).backward()
        optimizer.step()
    assert motion(walk()) < 0.85
    stills = torch.randn(500, 16)
    context = alignment.context(torch.zeros(500, 32, 8, 6), stills)
    changes = alignment.motion(context, stills.unsqueeze(1).expand(-1, 3, -1))[:, 2]
    assert 0.6 < (changes @ axis).std() < 1.4
    across = changes - (changes @ axis).unsqueeze(1) * axis
    assert across.std(dim=0).norm() < 0.6


def test_generators_learn_a_predictable_motion() -> None:
    torch.manual_seed(0)
    method = make(length=5)
    start, velocity = torch.randn(16, 1, 16), torch.randn(16, 16)
    optimizer = torch.optim.Adam(method.alignment.parameters(), 0.01)

    def walk() -> Tensor:
        identities = start[torch.randint(16, (32,))]
        return identities + torch.arange(-3, 4).view(1, 7, 1) * 0.1 * (identities @ velocity / 4)

    for _ in range(150):
        optimizer.zero_grad()
        terms = supervision(method, walk())
        (terms["motion"] + terms["content"]).backward()
        optimizer.step()
    terms = supervision(method, walk())
    assert terms["motion"] < 0.4 and terms["content"] < 0.6


def test_match_joins_frames_with_sequences_of_identity() -> None:
    method = make(length=5, mgm=False, cgm=False)
    walks = batch()
    stills = walks.sequences[:, [0, -1]].flatten(0, 1)
    with torch.no_grad(), without_dropout(method):
        outputs = method(walks)["match"]
        real = method.embedder(walks.sequences)
        ends = method.embedder(stills.unsqueeze(1).expand(-1, 5, -1, -1, -1)).view(4, 2, -1)
        identities = torch.tensor([0, 0, 2, 2] * 3)
        expected = method.video(torch.cat([real, ends[:, 0], ends[:, 1]]), identities)
    torch.testing.assert_close(outputs, expected)
    assert not outputs.isclose(method(walks)["video"])


def test_alignment_frames_taken_as_stills_have_no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(flow="dis")
    alignment, calls = method.alignment, []

    def record(name: str) -> None:
        original = getattr(alignment, name)

        def wrapper(*arguments: Any) -> Any:
            calls.append(arguments[1:3])
            return original(*arguments)

        monkeypatch.setattr(alignment, name, wrapper)

    record("of_stills")
    record("supervise")
    walks = batch()
    for flow in (torch.zeros(4, 5, 2, 32, 24), torch.randn(4, 5, 2, 32, 24)):
        frames = torch.cat([walks.sequences, flow], dim=2)
        with without_dropout(method):
            method(replace(walks, sequences=frames))["loss"].backward()
    assert len(calls) == 6  # stills of sequences, images and neighbours, twice
    first, second = calls[:3], calls[3:]
    for before, after in zip(first, second, strict=True):
        for ours, theirs in zip(before, after, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_self_supervision_gives_the_encoder_no_gradient() -> None:
    method = make()
    terms = method(batch())
    (terms["motion"] + terms["content"]).backward()
    assert all(parameter.grad is None for parameter in method.embedder.parameters())
    assert any(parameter.grad is not None for parameter in method.alignment.parameters())


def test_images_do_not_update_running_statistics() -> None:
    method, baseline = make(encoder="residual"), make("sequence", encoder="residual")
    baseline.embedder.load_state_dict(method.embedder.state_dict())
    torch.manual_seed(2)  # the same dropout
    method(batch())
    torch.manual_seed(2)
    baseline(batch())
    outputs, expected = dict(method.embedder.named_buffers()), dict(baseline.embedder.named_buffers())
    torch.testing.assert_close(outputs, expected)


def test_alignment_training_lowers_the_loss_of_one_batch() -> None:
    method = make(encoder="residual")
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    with without_dropout(method):
        first = method(batch())
    for _ in range(15):
        optimizer.zero_grad()
        last = method(batch())
        last["loss"].backward()
        optimizer.step()
    with without_dropout(method):
        last = method(batch())
    assert last["video"] < 0.7 * first["video"] and last["pseudo"] < 0.7 * first["pseudo"]


def test_static_repeats_the_image() -> None:
    method = make("static", length=5)
    steps, features = pseudo(method)
    torch.testing.assert_close(steps, features.unsqueeze(1).expand(-1, 5, -1))
    terms = method(batch())
    torch.testing.assert_close(terms["loss"], terms["video"] + terms["pseudo"])


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("name", ["static", "pretrain", "alignment"])
def test_still_flow_mean_is_that_of_the_sequences(name: str, phase: int) -> None:
    method, walks = make(name, flow="dis", still_flow="mean"), batch()
    method.phase = phase
    flows = torch.randn(2, 4, 5, 2, 32, 24, generator=torch.Generator().manual_seed(2))
    for flow in flows:
        method(replace(walks, sequences=torch.cat([walks.sequences, flow], dim=2)))["loss"].backward()
    stills, _ = walks.stills()
    frames = method.as_frames(stills)
    torch.testing.assert_close(frames[:, :3], stills)
    torch.testing.assert_close(frames[:, 3:], flows.mean(dim=(0, 1, 2)).expand(6, -1, -1, -1))
    method.eval()
    method(replace(walks, sequences=torch.ones(4, 5, 5, 32, 24)))
    assert torch.equal(method.as_frames(stills), frames)  # training alone counts
    resumed = make(name, flow="dis", still_flow="mean")
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.as_frames(stills), frames)


def test_still_flow_borrowed_is_that_of_sequences() -> None:
    method, walks = make("static", flow="dis", still_flow="borrowed"), batch()
    stills, _ = walks.stills()
    assert not method.as_frames(stills)[:, 3:].any()  # no sequence was seen
    flows = torch.randn(18, 4, 5, 2, 32, 24, generator=torch.Generator().manual_seed(2))
    for flow in flows:
        method.still_flow.observe(flow)
    last = flows[-16:, :, 2].flatten(0, 1)  # 64 sequences, each in its middle
    frames = method.as_frames(stills.repeat(20, 1, 1, 1))
    chosen = [int((last == flow).all(dim=(1, 2, 3)).nonzero()) for flow in frames[:, 3:]]
    assert len(set(chosen)) > 40  # of 64, by 120 draws
    assert method(replace(walks, sequences=torch.cat([walks.sequences, flows[0]], dim=2)))["loss"].isfinite()


def test_pretrain_learns_from_images_then_from_sequences() -> None:
    method = make("pretrain")
    method.phase = 0
    terms = method(batch())
    assert terms.keys() == {"loss", "pseudo"} and method.frames(batch()) == 6
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert method.video.classifier.weight.grad.norm() == 0 < method.pseudo.classifier.weight.grad.norm()
    method.zero_grad()
    method.phase = 1
    terms = method(batch())
    assert terms.keys() == {"loss", "video"} and method.frames(batch()) == 20
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert method.pseudo.classifier.weight.grad.norm() == 0 < method.video.classifier.weight.grad.norm()


@pytest.mark.parametrize("level", ["feature", "pixel"])
@pytest.mark.parametrize("name", ["static", "alignment"])
def test_joint_method_phase_0_trains_on_images_alone(name: str, level: str) -> None:
    method = make(name, encoder="residual", level=level)
    before = method.embedder.encoder.norm.running_mean.clone()
    method.phase = 0
    terms = method(batch())
    assert terms.keys() == {"loss", "pseudo"} and method.frames(batch()) == 6
    torch.testing.assert_close(terms["loss"], terms["pseudo"])
    assert not torch.equal(method.embedder.encoder.norm.running_mean, before)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    method.phase = 1
    assert "video" in method(batch()) and method.frames(batch()) == 26


def test_schedule_fade_lowers_the_weight_of_images() -> None:
    method = make("static", schedule="fade", weights={"pseudo": 2})
    for progress, weight in (0.0, 2.0), (0.5, 1.0), (1.0, 0.0):
        method.progress = progress
        with without_dropout(method):
            terms = method(batch())
        torch.testing.assert_close(terms["loss"], terms["video"] + weight * terms["pseudo"])
