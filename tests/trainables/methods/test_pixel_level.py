"""Tests of the pixel level: frames generated from stills, their flow, and learning of motion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainables.methods import Batch, CrossModalityConfig, MethodConfig, build_method
from trainables.methods.flow_memory import FlowBank, observe_flow
from trainables.methods.pixel_level import (
    SPEED,
    PixelAlignment,
    around,
    enlarge,
    neighbours,
    paths_along,
    step_flow,
    warp,
)
from trainables.network.flow import optical_flow

WORKERS = 2


def make(encoder: str = "mclaughlin2016", flow: str = "none", **alignment: Any) -> Any:
    torch.manual_seed(0)
    network = {
        "encoder": {"name": encoder, "features": 16, "dropout": 0},
        "rnn": {"hidden_size": 16, "dropout": 0},
        "height": 32,
        "width": 24,
        "flow": flow,
    }
    config = MethodConfig.model_validate({"network": network, "alignment": {"level": "pixel", **alignment}})
    return build_method("alignment", config, sequences=4, images=5)


def alone(**alignment: Any) -> PixelAlignment:
    torch.manual_seed(0)
    return PixelAlignment(CrossModalityConfig(level="pixel", **alignment), 32, 24)


def shake(alignment: PixelAlignment) -> None:
    """Randomise the last layers of the generators, whose fields start at 0."""
    for generator in (alignment.mgm, alignment.cgm):
        if generator is not None:
            nn.init.normal_(generator.amounts.output.weight)
            nn.init.normal_(generator.amounts.output.bias)


def batch(channels: int = 3, rank: int = 0, workers: int = 1) -> Batch:
    """Return a worker's share of a batch."""
    generator = torch.Generator().manual_seed(1)
    walks = torch.rand(4, 7, channels, 32, 24, generator=generator)
    stills = torch.rand(6, 3, 40, 20, generator=generator)
    identities, image_identities = torch.tensor([0, 3, 3, 0]), torch.tensor([0, 1, 4, 4, 1, 0])
    return Batch(
        sequences=walks.chunk(workers)[rank],
        sequence_identities=identities.chunk(workers)[rank],
        sequence_cameras=torch.zeros(4, dtype=torch.long).chunk(workers)[rank],
        images=stills.chunk(workers)[rank],
        image_identities=image_identities.chunk(workers)[rank],
    )


def supervise(alignment: PixelAlignment, frames: Tensor) -> dict[str, Any]:
    return alignment.supervise(frames, *[torch.empty(0)] * 3)


def texture(count: int, height: int, width: int, grain: int = 4) -> Tensor:
    """Return random images of smooth blots, ``[count, 3, height, width]`` in 0..1."""
    blots = torch.rand(count, 3, height // grain, width // grain)
    return functional.interpolate(blots, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def passing(count: int, time: int) -> Tensor:
    """Return walls of blots that move 2 pixels right and 1 up per frame, and their flow.

    ``[sequence, time, 5, 64, 48]``.
    """
    walls, frames = texture(count, 64 + 4 * time, 48 + 4 * time), torch.empty(count, time, 5, 64, 48)
    frames[:, :, 3], frames[:, :, 4] = 2, -1
    for t in range(time):
        top, left = t, 2 * (time - t)
        frames[:, t, :3] = walls[:, :, top : top + 64, left : left + 48]
    return frames


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 48), (37, 50)], ids=["usual", "odd"])
@pytest.mark.parametrize("length", [3, 7])
def test_generate_frames_surround_the_original_image(length: int, size: tuple[int, int]) -> None:
    alignment, images = alone(length=length), torch.rand(4, 3, *size)
    frames, flow = alignment.generate(images)
    assert frames.shape == (4, length, 3, *size) and flow.shape == (4, length, 2, *size)
    torch.testing.assert_close(frames, images.unsqueeze(1).expand_as(frames))  # starts motionless
    assert (flow == 0).all()
    shake(alignment)
    frames, flow = alignment.generate(images)
    assert (frames[:, length // 2] == images).all()
    assert frames.min() >= 0 and frames.max() <= 1
    changes = (neighbours(frames) - images.unsqueeze(1)).flatten(2).norm(dim=2)
    assert (changes > 0.1).all()
    assert (flow[:, -1] == flow[:, -2]).all() and flow.abs().amax() > 0.5
    again, _ = alignment.generate(images)
    assert (neighbours(again) - neighbours(frames)).norm() > 0.1  # another draw


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["mclaughlin2016", "residual"])
@pytest.mark.parametrize("flow", ["none", "dis"])
def test_pseudo_steps_encode_generated_frames(encoder: str, flow: str) -> None:
    method = make(encoder, flow, length=5, noise=0).eval()
    shake(method.alignment)
    images = torch.rand(3, 3, 32, 24)
    steps, (frames, moved) = method.pseudo_steps(images), method.pseudo_frames(images)
    assert steps.shape == (3, 5, 16)
    if flow == "none":
        torch.testing.assert_close(steps[:, 2], method.embedder.encode(images))
    else:
        frames = torch.cat([frames, moved], dim=2)
    expected = method.embedder.encode(frames.flatten(0, 1)).view(3, 5, 16)
    torch.testing.assert_close(steps, expected)
    assert (steps[:, 0] - steps[:, 4]).norm() > 0.01  # the sign of the offset matters


def test_pseudo_frames_at_feature_level_are_none() -> None:
    assert make(level="feature").pseudo_frames(torch.rand(2, 3, 32, 24)) is None


@torch.no_grad()
@pytest.mark.parametrize("zoom", [0.0, 0.5], ids=["shift", "zoom"])
def test_flow_agrees_with_optical_flow_between_frames(zoom: float, monkeypatch: pytest.MonkeyPatch) -> None:
    alignment = alone(length=5, cgm=False)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 12), indexing="ij")
    velocity = torch.stack([0.3 + zoom * columns, -0.2 + zoom * rows]).clamp(-1, 1)
    monkeypatch.setattr(alignment.mgm, "draw", lambda _: velocity.expand(1, 4, -1, -1, -1))
    frames, flow = alignment.generate(texture(1, 128, 96, grain=8))
    video = (frames[0].movedim(1, -1) * 255).round().byte().numpy()
    measured = torch.from_numpy(optical_flow(video)).movedim(-1, 1)
    inside = np.s_[..., 32:-32, 24:-24]
    error = (flow[0] - measured)[inside].abs()
    assert flow[0][inside].abs().mean() > 2
    assert error.mean() < 0.15 and error.median() < 0.1
    if not zoom:
        expected = torch.tensor([0.3 * SPEED * 96, -0.2 * SPEED * 128]).view(2, 1, 1)
        torch.testing.assert_close(flow[0], expected.expand_as(flow[0]), atol=1e-3, rtol=0)


def test_step_flow_leads_to_the_same_point_of_the_image() -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([-2, -1, 1, 2]).view(1, 4, 1, 1, 1)
    paths = -0.03 * offsets * enlarge(torch.randn(2, 4, 2, 3, 3), (16, 12))
    paths = around(paths, torch.zeros(2, 2, 16, 12))
    here, ahead = paths[:, :-1], paths[:, 1:]

    def error(flow: Tensor) -> float:
        arrived = warp(ahead.flatten(0, 1), flow.flatten(0, 1).unsqueeze(1)).view_as(flow)
        return float((flow + arrived - here).abs().mean())

    assert error(step_flow(paths)) < 0.2 * error(here - ahead)
    assert (around(neighbours(paths), paths[:, 2]) == paths).all()


@pytest.mark.parametrize("length", [3, 7])
def test_paths_along_flow_have_that_flow(length: int) -> None:
    torch.manual_seed(0)
    flow = enlarge(torch.randn(2, length - 1, 2, 3, 3), (64, 48))
    paths = around(paths_along(flow), torch.zeros(2, 2, 64, 48))
    found = step_flow(paths) * torch.tensor([48.0, 64.0]).view(2, 1, 1)
    error = (found - flow)[..., 12:-12, 12:-12].abs().mean()  # paths that leave the frame end at the border
    assert error < 0.02 * flow.abs().mean()


@torch.no_grad()
def test_borrowed_motion_is_that_of_training_sequences() -> None:
    torch.manual_seed(0)
    config = CrossModalityConfig(level="pixel", length=5, motion="borrowed", cgm=False)
    alignment, real = PixelAlignment(config, 64, 48), passing(64, 6)
    still = real[:, 2, :3]
    frames, flow = alignment.generate(still)
    torch.testing.assert_close(frames, still.unsqueeze(1).expand_as(frames))  # no sequence was seen
    assert not flow.any()
    observe_flow(alignment, real)
    frames, flow = alignment.generate(still)
    torch.testing.assert_close(flow, real[:, :5, 3:])
    inside = np.s_[..., 4:-4, 6:-6]  # pixels that enter at the border are not in the still
    torch.testing.assert_close(frames[inside], real[:, :5, :3][inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("time", "steps"), [(1, [2]), (2, [2, 3]), (4, [1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])])
def test_bank_keeps_the_middle_of_the_last_sequences(time: int, steps: list[int]) -> None:
    bank = FlowBank(time, 3, 2)
    numbers = torch.arange(70).view(70, 1) + torch.arange(6) / 10  # sequence.frame
    bank.observe(numbers.view(70, 6, 1, 1, 1).expand(-1, -1, 2, 3, 2))
    bank.observe(-numbers[:3].view(3, 6, 1, 1, 1).expand(-1, -1, 2, 3, 2))
    kept = torch.cat([numbers[9:70], -numbers[:3]])[:, steps]
    torch.testing.assert_close(bank.bank[:, :, 0, 0, 0], kept)
    assert (bank.bank == bank.bank[:, :, :1, :1, :1]).all() and bank.draw(5).shape == (5, time, 2, 3, 2)


def test_borrowed_motion_is_not_learned() -> None:
    method = make(flow="dis", length=3, motion="borrowed")
    terms = method(batch(channels=5))
    assert "motion" not in terms and terms["loss"].isfinite()
    terms["loss"].backward()
    assert method.alignment.borrowed.bank[-4:].any() and method.alignment.mgm is None
    kept = method.alignment.borrowed.bank.clone()
    method.eval()
    method(batch(channels=5))
    assert (method.alignment.borrowed.bank == kept).all()  # training alone counts


@torch.no_grad()
def test_warp_moves_the_image_by_the_path() -> None:
    image = texture(1, 40, 30)
    paths = torch.tensor([-3 / 30, 5 / 40]).view(1, 1, 2, 1, 1).expand(-1, -1, -1, 4, 4)
    [[moved]] = warp(image, paths)
    torch.testing.assert_close(moved[:, :-5, 3:], image[0, :, 5:, :-3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        moved[:, :-5, 0], image[0, :, 5:, 0], atol=1e-5, rtol=1e-4
    )  # the border repeats


@pytest.mark.parametrize("channels", [3, 5])
def test_supervise_motionless_guess_scores_1(channels: int) -> None:
    torch.manual_seed(0)
    terms = supervise(alone(), passing(3, 5)[:, :, :channels])
    torch.testing.assert_close(terms, {"motion": torch.tensor(1.0), "content": torch.tensor(1.0)})
    still = torch.cat([torch.full((3, 5, 3, 64, 48), 0.5), torch.zeros(3, 5, 2, 64, 48)], dim=2)
    terms = supervise(alone(), still[:, :, :channels])  # real sequences are motionless
    torch.testing.assert_close(terms, {"motion": torch.tensor(0.0), "content": torch.tensor(0.0)})


@pytest.mark.parametrize("channels", [3, 5], ids=["photometric", "flow"])
def test_alignment_learns_how_things_move(channels: int) -> None:
    torch.manual_seed(0)
    alignment = alone(length=3)
    optimizer = torch.optim.Adam(alignment.parameters(), 0.005)
    for _ in range(60):
        optimizer.zero_grad()
        terms = supervise(alignment, passing(16, 3)[:, :, :channels])
        (terms["motion"] + terms["content"]).backward()
        optimizer.step()
    real = passing(32, 3)
    with torch.no_grad():
        terms = supervise(alignment, real[:, :, :channels])
        frames, flow = alignment.generate(real[:, 1, :3])
    stills, real = real[:, 1:2, :3], real[:, :, :3]
    inside = np.s_[..., 4:-4, 4:-4]  # pixels that enter at the border are not in the still
    error, motionless = (
        neighbours(shown - real)[inside].square().mean(dim=(0, 2, 3, 4)) for shown in (frames, stills)
    )
    assert terms["motion"] < 0.5 and terms["content"] < 0.5
    assert (error < 0.2 * motionless).all()
    torch.testing.assert_close(flow.mean(dim=(0, 1, 3, 4)), torch.tensor([2.0, -1.0]), atol=0.4, rtol=0)


def test_alignment_learns_how_colours_change() -> None:
    torch.manual_seed(0)
    alignment = alone(length=3, mgm=False)
    optimizer = torch.optim.Adam(alignment.parameters(), 0.005)
    dusk = torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1, 1)
    for _ in range(40):
        optimizer.zero_grad()
        terms = supervise(alignment, 0.2 + 0.6 * texture(16, 64, 48).unsqueeze(1) + dusk)
        terms["content"].backward()
        optimizer.step()
    still = 0.2 + 0.6 * texture(8, 64, 48)
    with torch.no_grad():
        frames, _ = alignment.generate(still)
    assert terms["content"] < 0.3
    torch.testing.assert_close(frames, still.unsqueeze(1) + dusk, atol=0.06, rtol=0)


WEIGHTS = ("pseudo", "match", "motion", "content", "distribution")


@pytest.mark.parametrize("flow", ["none", "dis"])
@pytest.mark.parametrize(
    "switches",
    [{}, {"mgm": False}, {"cgm": False}, {"mgm": False, "cgm": False}]
    + [{"weights": {zero: 0}} for zero in WEIGHTS]
    + [{"weights": dict.fromkeys(WEIGHTS, 0) | {only: 1}} for only in WEIGHTS],
    ids=str,
)
def test_switches_leave_no_term_and_no_unused_parameter(switches: dict[str, Any], flow: str) -> None:
    method = make(flow=flow, **switches)
    terms = method(batch(5 if flow == "dis" else 3))
    expected = {name for name in WEIGHTS if getattr(method.weights, name) > 0}
    expected -= {"motion"} if switches.get("mgm") is False else set()
    expected -= {"content"} if switches.get("cgm") is False else set()
    assert terms.keys() == expected | {"loss", "video"}
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert (method.alignment.mgm is not None) == ("motion" in expected)
    assert (method.alignment.cgm is not None) == ("content" in expected)


def test_generators_learn_from_real_sequences_alone() -> None:
    method = make()
    shake(method.alignment)
    terms = method(batch())
    (terms["motion"] + terms["content"]).backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in method.embedder.parameters())
    assert all(parameter.grad is not None for parameter in method.alignment.parameters())
    method.zero_grad()
    (terms["pseudo"] + terms["match"] + terms["distribution"]).backward()
    assert all(parameter.grad is None for parameter in method.alignment.parameters())
    assert all(parameter.grad is not None for parameter in method.embedder.parameters())


def test_content_term_gives_mgm_no_gradient() -> None:
    alignment = alone()
    shake(alignment)
    supervise(alignment, passing(2, 4))["content"].backward()
    assert alignment.mgm is not None and alignment.cgm is not None
    assert all(parameter.grad is None for parameter in alignment.mgm.parameters())
    assert all(parameter.grad is not None for parameter in alignment.cgm.parameters())


def test_supervise_short_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alignment.length is 9, but sequences have 7 frames \(batch"):
        make(length=9)(batch())


@pytest.mark.parametrize("flow", ["none", "dis"])
def test_reduced_precision_keeps_motion_and_losses_float32(flow: str) -> None:
    method = make("residual", flow)
    shake(method.alignment)
    method.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(batch(5 if flow == "dis" else 3))
        frames, moved = method.alignment.generate(torch.rand(2, 3, 32, 24))
    assert {term.dtype for term in (*terms.values(), frames, moved)} == {torch.float32}
    assert all(term.isfinite() for term in terms.values())
    terms["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def train(flow: str, rank: int, workers: int) -> dict[str, Any]:
    """Return losses and gradients of one step, without noise and dropout."""
    method = make("residual", flow, noise=0)
    shake(method.alignment)
    model = DistributedDataParallel(method) if workers > 1 else method
    for _ in range(2):  # DistributedDataParallel complains about an unused parameter in the second step
        model.zero_grad()
        terms = model(batch(5 if flow == "dis" else 3, rank, workers))
        terms["loss"].backward()
    return {"terms": terms, "gradients": {name: value.grad for name, value in method.named_parameters()}}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    torch.save({flow: train(flow, rank, WORKERS) for flow in ("none", "dis")}, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_method_two_workers_train_like_one(tmp_path: Path) -> None:
    spawn(work, args=(str(tmp_path),), nprocs=WORKERS)  # type: ignore[no-untyped-call]
    for flow in ("none", "dis"):
        expected = train(flow, 0, 1)
        for rank in range(WORKERS):
            result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[flow]
            torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-3)
