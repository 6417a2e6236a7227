"""Pixel-level pseudo sequences: MGM warps the image, CGM recolours it, and the CNN encodes the frames."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.alignment_network import CrossModalityAlignment, CrossModalityConfig
from trainables.methods.feature_level import OffsetGenerator, energy_score
from trainables.methods.flow_memory import FlowBank
from trainables.network.embedder import SequenceEmbedder
from trainables.network.preprocess import resize

SKETCH = (32, 24)
"""Rows and columns at which generators work and frames are compared, independent of the network's input."""
SPEED = 1 / 8
"""Largest displacement of a point per frame, as a fraction of the frame's width and height."""
TINT = 1 / 4
"""Largest change by CGM of a colour in 0..1."""


class FieldGenerator(nn.Module):
    """Generator of smooth fields over an image, one per generated step.

    Convolutions compute basis fields (modes) at half the resolution of a sketch. An `OffsetGenerator` weighs
    them by the image, the step's signed offset and noise. Its weights start at 0, and so do the fields.
    """

    position: Tensor

    def __init__(
        self, inputs: int, outputs: int, length: int, *, noise: int = 0, modes: int, hidden: int
    ) -> None:
        super().__init__()
        self.modes, self.outputs = modes, outputs
        rows, columns = (torch.linspace(-1, 1, size) for size in SKETCH)
        position = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        self.register_buffer("position", position, persistent=False)
        self.look = nn.Sequential(
            nn.Conv2d(inputs + 2, hidden, 4, stride=2, padding=1),
            nn.GroupNorm(1, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2),
            nn.ReLU(),
        )
        self.find = nn.Conv2d(hidden, modes * outputs, 1)
        self.amounts = OffsetGenerator(8 * hidden, modes, length, noise)

    def see(self, sketches: Tensor) -> tuple[Tensor, Tensor]:
        """Return modes and context of ``[image, length - 1 or 1, inputs, *SKETCH]`` for `draw`."""
        items, steps = sketches.shape[:2]
        position = self.position.to(sketches).expand(items * steps, -1, -1, -1)
        seen = self.look(torch.cat([sketches.flatten(0, 1), position], dim=1))
        # As in FeatureAlignment, 4 x 2 cells separate legs from torso.
        context = functional.adaptive_avg_pool2d(seen, (4, 2)).reshape(items, steps, -1)
        modes = self.find(seen).reshape(items, steps, self.modes, self.outputs, *seen.shape[-2:])
        return modes, context.mean(dim=1, keepdim=True)

    def draw(self, seen: tuple[Tensor, Tensor]) -> Tensor:
        """Return fields ``[image, length - 1, outputs, rows, columns]`` in -1..1, without the middle step.

        The fields are at least float32. Each call draws new noise, once per pseudo sequence.
        """
        modes, context = seen
        amounts = neighbours(self.amounts(context))
        with torch.autocast(modes.device.type, enabled=False):
            precision = torch.promote_types(modes.dtype, torch.float32)
            modes = modes.to(precision).expand(-1, amounts.shape[1], -1, -1, -1, -1)
            return torch.einsum("ism,ismorc->isorc", amounts.to(precision), modes).tanh()


class PixelAlignment(CrossModalityAlignment):
    """MGM and CGM on frames, before the CNN. The whole pixel variant is our interpretation.

    MGM samples a dense flow for each step and warps the image with it; CGM sees the warped image and adds
    colour. The middle step is the original image. If the network takes optical flow, the flow between
    generated steps fills the channels that a still image lacks.

    A path maps each point of a step to its source in the image, as (right, down) in fractions of the width
    and height. It is a velocity times the signed offset, so displacements grow with the offset. `SPEED`
    bounds velocities and `TINT` colours. `FeatureAlignment` explains why motion is sampled, not predicted.

    With ``alignment.motion: borrowed``, paths follow the optical flow of a random training sequence instead,
    and nothing bounds them.

    Both modules learn only from real sequences; a module whose term weighs 0 is not built. The other losses
    treat pseudo sequences as data: their gradient would teach MGM and CGM to mark each identity by tinting
    and shifting all steps alike.
    """

    offsets: Tensor
    supervised_by_frames = True

    def __init__(self, config: CrossModalityConfig, height: int, width: int) -> None:
        super().__init__()
        self.length, self.reach = config.length, config.length // 2
        offsets = torch.arange(-self.reach, self.reach + 1)
        self.register_buffer("offsets", offsets[offsets != 0].view(-1, 1, 1, 1), persistent=False)
        self.mgm = self.cgm = self.borrowed = None
        if config.mgm and config.motion == "borrowed":
            self.borrowed = FlowBank(config.length - 1, height, width)
        elif config.mgm and config.weights.motion > 0:
            self.mgm = FieldGenerator(3, 2, config.length, noise=config.noise, modes=16, hidden=32)
        if config.cgm and config.weights.content > 0:
            self.cgm = FieldGenerator(6, 3, config.length, modes=8, hidden=16)

    def paths(self, sketches: Tensor, draws: int) -> list[Tensor]:
        """Return ``draws`` samples of paths for ``sketches [image, 3, *SKETCH]``.

        Each is ``[image, length - 1, 2, rows, columns]``: without the middle step, at half the resolution of
        a sketch, or at that of borrowed flow. Without motion all paths are 0.
        """
        if self.borrowed is not None:
            return [paths_along(self.borrowed.draw(len(sketches))) for _ in range(draws)]
        if self.mgm is None:
            rows, columns = SKETCH
            return [sketches.new_zeros(len(sketches), self.length - 1, 2, rows // 2, columns // 2)] * draws
        seen = self.mgm.see(sketches.unsqueeze(1))
        return [-SPEED * self.offsets * self.mgm.draw(seen) for _ in range(draws)]

    def flow(self, paths: Tensor, size: Sequence[int]) -> Tensor:
        """Return the optical flow ``[image, length, 2, *size]`` of frames warped by ``paths``.

        As in `network.flow`, flow is (right, down) in pixels per frame, step t leads from frame t to frame
        t + 1, and the last step repeats the one before it.
        """
        height, width = size
        flow = enlarge(step_flow(around(paths, torch.zeros_like(paths[:, 0]))), size)
        flow = flow * flow.new_tensor([width, height]).view(2, 1, 1)
        return torch.cat([flow, flow[:, -1:]], dim=1)

    def repaint(self, frames: Tensor, sketches: Tensor, moved: Tensor) -> Tensor:
        """Add CGM's colours to ``frames [image, length - 1, 3, height, width]``, clamped to 0..1.

        CGM sees the original ``sketches [image, 3, *SKETCH]`` and the warped ones,
        ``moved [image, length - 1, 3, *SKETCH]``.
        """
        if self.cgm is None:
            return frames
        seen = self.cgm.see(torch.cat([moved, sketches.unsqueeze(1).expand_as(moved)], dim=2))
        added = enlarge(TINT * self.cgm.draw(seen), frames.shape[-2:])
        return (frames + added).clamp(0, 1)

    def generate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map stills to frames and the flow between them; see `CrossModalityAlignment` and `flow`."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        sketches = resize(images, *SKETCH)
        if self.borrowed is not None:
            flow = self.borrowed.draw(len(images))
            paths, flow = paths_along(flow), torch.cat([flow, flow[:, -1:]], dim=1)
        else:
            (paths,) = self.paths(sketches, draws=1)
            flow = self.flow(paths, images.shape[-2:])
        frames = self.repaint(warp(images, paths), sketches, warp(sketches, paths))
        return around(frames, images), flow

    def forward(self, embedder: SequenceEmbedder, images: Tensor) -> Tensor:
        """Map stills ``[image, 3 or 5, height, width]`` to pseudo sequences ``[image, length, features]``.

        The flow of a still is not used: it is generated.
        The middle step is the feature of the image itself, together with its generated flow if the network
        takes optical flow.
        """
        with torch.no_grad():
            frames, flow = self.generate(resize(images[:, :3], embedder.config.height, embedder.config.width))
        if embedder.config.channels == 5:
            frames = torch.cat([frames, flow], dim=2)
        return embedder.encode(frames.flatten(0, 1)).view(len(images), self.length, -1)

    def supervise(self, frames: Tensor, maps: Tensor, stills: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Compare the frames generated from a frame with its real neighbours; see `CrossModalityAlignment`.

        Sequences are cut into consecutive runs of ``length`` frames, and the middle frame of a run is its
        still. Both terms are energy scores (Gneiting and Raftery, 2007) at the size of a sketch. ``motion``
        compares generated with real optical flow; if frames have no flow, it compares the stills warped by
        MGM with the real neighbours (photometric). ``content`` is the photometric score after CGM, without
        gradient for MGM.
        """
        time = frames.shape[1]
        if time < self.length:
            raise ValueError(
                f"alignment.length is {self.length}, but sequences have {time} frames (batch.frames)"
            )
        frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
        frames = frames[:, : time - time % self.length].flatten(0, 1)
        runs = resize(frames, *SKETCH).view(-1, self.length, frames.shape[1], *SKETCH)
        real, stills, flow = neighbours(runs)[:, :, :3], runs[:, self.reach, :3], runs[:, :-1, 3:]
        paths = self.paths(stills, draws=2)
        moved = [warp(stills, path) for path in paths]
        terms = {}
        if self.mgm is not None and flow.shape[2]:
            draw, other = (self.flow(path, SKETCH)[:, :-1] for path in paths)
            terms["motion"] = energy_score(draw, other, flow, floor(flow))
        elif self.mgm is not None:
            terms["motion"] = photometric_score(moved, real, stills)
        if self.cgm is not None:
            moved = [neighbour.detach() for neighbour in moved]
            painted = [self.repaint(neighbour, stills, neighbour) for neighbour in moved]
            terms["content"] = photometric_score(painted, real, stills)
        return terms


def photometric_score(draws: Sequence[Tensor], real: Tensor, stills: Tensor) -> Tensor:
    """Return the energy score of two draws ``[image, step, 3, height, width]``, relative to the stills.

    ``real`` has the shape of a draw, ``stills`` is ``[image, 3, height, width]``.
    """
    draw, other, change = (frames - stills.unsqueeze(1) for frames in (*draws, real))
    return energy_score(draw, other, change, floor(change))


def floor(real: Tensor) -> Tensor:
    """Return the least squared norm to divide the score of an item ``real[0]`` by: 0.01 at every point."""
    return real.new_tensor(1e-4 * real[0].numel())


def neighbours(steps: Tensor) -> Tensor:
    """Return ``[image, length, ...]`` without the middle step."""
    reach = steps.shape[1] // 2
    return torch.cat([steps[:, :reach], steps[:, reach + 1 :]], dim=1)


def around(steps: Tensor, middle: Tensor) -> Tensor:
    """Insert ``middle [image, ...]`` into ``[image, length - 1, ...]``: the inverse of `neighbours`."""
    before, after = steps.chunk(2, dim=1)
    return torch.cat([before, middle.unsqueeze(1), after], dim=1)


def enlarge(fields: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate ``[image, step, channel, rows, columns]`` to ``[image, step, channel, *size]``."""
    fine = functional.interpolate(fields.flatten(0, 1), tuple(size), mode="bilinear", align_corners=False)
    return fine.view(*fields.shape[:3], *size)


def warp(images: Tensor, paths: Tensor) -> Tensor:
    """Warp ``images [image, channel, height, width]`` into frames ``[image, step, channel, height, width]``.

    ``paths [image, step, 2, rows, columns]`` map each point of a step to its source in the image, as
    (right, down) in fractions of the width and height. Beyond the border its pixels repeat.
    """
    height, width = images.shape[-2:]
    steps = paths.shape[1]
    rows, columns = (
        (torch.arange(size, dtype=paths.dtype, device=paths.device) * 2 + 1) / size - 1
        for size in (height, width)
    )
    position = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = position + 2 * enlarge(paths, (height, width)).movedim(2, -1)
    # Steps are stacked into one tall frame, so that the image is not copied for each of them.
    moved = functional.grid_sample(images, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    return moved.reshape(len(images), -1, steps, height, width).movedim(2, 1)


def paths_along(flow: Tensor) -> Tensor:
    """Return the paths into the middle step along the optical flow between steps.

    Flow ``[image, length - 1, 2, height, width]`` is (right, down) in pixels, step t leads to step t + 1.
    Paths have the same shape, without the middle step, in fractions of the width and height.
    """
    height, width = flow.shape[-2:]
    flow = flow / flow.new_tensor([width, height]).view(2, 1, 1)
    reach = flow.shape[1] // 2
    before: list[Tensor] = [torch.zeros_like(flow[:, 0])]
    for step in reversed(range(reach)):  # the flow of a step leads towards the middle
        before.append(flow[:, step] + _at(before[-1], flow[:, step]))
    after = [torch.zeros_like(flow[:, 0])]
    for step in range(reach, 2 * reach):
        back = -flow[:, step]
        for _ in range(2):  # the inverse of flow: what it maps here
            back = -_at(flow[:, step], back)
        after.append(back + _at(after[-1], back))
    return torch.stack(before[:0:-1] + after[1:], dim=1)


def _at(field: Tensor, path: Tensor) -> Tensor:
    """Return ``field [image, 2, rows, columns]`` at the points that ``path`` of the same shape leads to."""
    return warp(field, path.unsqueeze(1)).squeeze(1)


def step_flow(paths: Tensor) -> Tensor:
    """Return the flow from each step to the next, given the steps' paths into one image.

    Maps ``[image, step, 2, rows, columns]`` to one step less, in fractions of the width and height. Point x
    of a step and x + flow of the next step show the same point of the image:
    ``flow(x) = path(x) - next path(x + flow(x))``, iterated twice.
    """
    here, ahead = paths[:, :-1], paths[:, 1:]
    flow = here - ahead
    for _ in range(2):
        flow = here - _at(ahead.flatten(0, 1), flow.flatten(0, 1)).view_as(flow)
    return flow
