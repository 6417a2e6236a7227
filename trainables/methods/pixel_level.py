"""Pseudo sequences on the level of pixels: MGM moves the image, CGM repaints it, the CNN sees frames."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.alignment_network import CrossModalityAlignment, CrossModalityConfig
from trainables.methods.feature_level import OffsetGenerator, energy_score
from trainables.network.embedder import SequenceEmbedder
from trainables.network.preprocess import resize

SKETCH = (32, 24)
"""Rows and columns at which generators look and frames are compared, whatever those of the network are."""
SPEED = 1 / 8
"""Most that a place moves in a frame, in parts of the frame's width and height."""
TINT = 1 / 4
"""Most that CGM adds to a colour in 0..1."""


class FieldGenerator(nn.Module):
    """Smooth fields over the image, one per generated step: modes that the image shows, in drawn amounts.

    Convolutions find the modes, half as fine as a sketch; `OffsetGenerator` mixes them by the image, the
    step's signed offset and noise. It starts at 0, and so does every field.
    """

    place: Tensor

    def __init__(
        self, inputs: int, outputs: int, length: int, *, noise: int = 0, modes: int, hidden: int
    ) -> None:
        super().__init__()
        self.modes, self.outputs = modes, outputs
        rows, columns = (torch.linspace(-1, 1, size) for size in SKETCH)
        place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        self.register_buffer("place", place, persistent=False)
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
        """What `draw` needs to know of ``[image, length - 1 or 1, inputs, *SKETCH]``."""
        items, steps = sketches.shape[:2]
        place = self.place.to(sketches).expand(items * steps, -1, -1, -1)
        seen = self.look(torch.cat([sketches.flatten(0, 1), place], dim=1))
        # As in FeatureAlignment, 4 x 2 cells keep legs apart from torso.
        context = functional.adaptive_avg_pool2d(seen, (4, 2)).reshape(items, steps, -1)
        modes = self.find(seen).reshape(items, steps, self.modes, self.outputs, *seen.shape[-2:])
        return modes, context.mean(dim=1, keepdim=True)

    def draw(self, seen: tuple[Tensor, Tensor]) -> Tensor:
        """Fields ``[image, length - 1, outputs, rows, columns]`` in -1..1 of all steps but the middle one.

        At least float32. One draw of noise a pseudo sequence, and another in every call.
        """
        modes, context = seen
        amounts = neighbours(self.amounts(context))
        with torch.autocast(modes.device.type, enabled=False):
            precision = torch.promote_types(modes.dtype, torch.float32)
            modes = modes.to(precision).expand(-1, amounts.shape[1], -1, -1, -1, -1)
            return torch.einsum("ism,ismorc->isorc", amounts.to(precision), modes).tanh()


class PixelAlignment(CrossModalityAlignment):
    """MGM and CGM on frames, before the CNN: the pixel variant, with everything about it, is our reading.

    MGM draws for each step a dense flow by which the image is warped; CGM sees what became of it and adds
    colour. The untouched image stays the middle step. Where the network takes optical flow, the flow from
    step to step fills the channels that a still image lacks.

    A path leads from each place of a step to where it is in the image, (right, down) in parts of the width
    and height: a velocity times the signed offset, so that displacements grow with it. Velocities are
    bounded by `SPEED`, colours by `TINT`. Why motion is drawn, not predicted, `FeatureAlignment` says.

    Both learn from real sequences alone; without weight on its term a module is never made. Pseudo sequences
    are data to the other losses: they would make MGM and CGM mark people, all steps tinted and shifted alike.
    """

    offsets: Tensor

    def __init__(self, config: CrossModalityConfig) -> None:
        super().__init__()
        self.length, self.reach = config.length, config.length // 2
        offsets = torch.arange(-self.reach, self.reach + 1)
        self.register_buffer("offsets", offsets[offsets != 0].view(-1, 1, 1, 1), persistent=False)
        self.mgm = self.cgm = None
        if config.mgm and config.weights.motion > 0:
            self.mgm = FieldGenerator(3, 2, config.length, noise=config.noise, modes=16, hidden=32)
        if config.cgm and config.weights.content > 0:
            self.cgm = FieldGenerator(6, 3, config.length, modes=8, hidden=16)

    def paths(self, sketches: Tensor, draws: int) -> list[Tensor]:
        """So many draws of paths ``[image, length - 1, 2, rows, columns]`` for ``[image, 3, *SKETCH]``.

        Of all steps but the middle one, half as fine as a sketch; 0 without MGM.
        """
        if self.mgm is None:
            rows, columns = SKETCH
            return [sketches.new_zeros(len(sketches), self.length - 1, 2, rows // 2, columns // 2)] * draws
        seen = self.mgm.see(sketches.unsqueeze(1))
        return [-SPEED * self.offsets * self.mgm.draw(seen) for _ in range(draws)]

    def flow(self, paths: Tensor, size: Sequence[int]) -> Tensor:
        """Flow of frames of ``size`` that were moved along ``paths``: ``[image, length, 2, *size]``.

        As in `network.flow`: (right, down) in pixels per frame, step t leads from frame t to frame t + 1,
        the last repeats the one before.
        """
        height, width = size
        flow = enlarge(step_flow(around(paths, torch.zeros_like(paths[:, 0]))), size)
        flow = flow * flow.new_tensor([width, height]).view(2, 1, 1)
        return torch.cat([flow, flow[:, -1:]], dim=1)

    def repaint(self, frames: Tensor, sketches: Tensor, moved: Tensor) -> Tensor:
        """Add CGM's colours to ``frames [image, length - 1, 3, height, width]``; the result is in 0..1.

        CGM sees ``sketches [image, 3, *SKETCH]`` and what became of them,
        ``moved [image, length - 1, 3, *SKETCH]``.
        """
        if self.cgm is None:
            return frames
        seen = self.cgm.see(torch.cat([moved, sketches.unsqueeze(1).expand_as(moved)], dim=2))
        added = enlarge(TINT * self.cgm.draw(seen), frames.shape[-2:])
        return (frames + added).clamp(0, 1)

    def generate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map stills ``[image, 3, height, width]`` to frames ``[image, length, 3, height, width]`` in 0..1.

        And to their flow, ``[image, length, 2, height, width]``; see `flow`.
        """
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        sketches = resize(images, *SKETCH)
        (paths,) = self.paths(sketches, draws=1)
        frames = self.repaint(warp(images, paths), sketches, warp(sketches, paths))
        return around(frames, images), self.flow(paths, images.shape[-2:])

    def frames(self, images: Tensor) -> Tensor:
        """Map stills ``[image, 3, height, width]`` to RGB ``[image, length, 3, height, width]`` in 0..1."""
        return self.generate(images)[0]

    def forward(self, embedder: SequenceEmbedder, images: Tensor) -> Tensor:
        """Map stills ``[image, 3, height, width]`` to pseudo sequences ``[image, length, features]``.

        The middle step is the image's own feature; with optical flow, that of the image in motion.
        """
        with torch.no_grad():
            frames, flow = self.generate(resize(images, embedder.config.height, embedder.config.width))
        if embedder.config.channels == 5:
            frames = torch.cat([frames, flow], dim=2)
        return embedder.encode(frames.flatten(0, 1)).view(len(images), self.length, -1)

    def supervise(self, frames: Tensor, maps: Tensor, stills: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Compare what is generated from a frame with its real neighbours; see `CrossModalityAlignment`.

        Stills are the middles of as many runs of ``length`` frames as fit side by side. Both terms are
        energy scores (Gneiting and Raftery, 2007) at the size of a sketch. ``motion``: flow from step to
        step against the real optical flow; where frames have none, what MGM alone makes of the still
        against the real neighbour (photometric). ``content``: the same after CGM; it leaves MGM alone.
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
    """Energy score of two draws of frames ``[image, step, 3, height, width]``, relative to the stills.

    ``real`` has the shape of a draw, ``stills`` is ``[image, 3, height, width]``.
    """
    draw, other, wanted = (frames - stills.unsqueeze(1) for frames in (*draws, real))
    return energy_score(draw, other, wanted, floor(wanted))


def floor(real: Tensor) -> Tensor:
    """The least square of an item ``real[0]`` that a score is relative to: 0.01 in every place."""
    return real.new_tensor(1e-4 * real[0].numel())


def neighbours(steps: Tensor) -> Tensor:
    """All of ``[image, length, ...]`` but the middle step."""
    reach = steps.shape[1] // 2
    return torch.cat([steps[:, :reach], steps[:, reach + 1 :]], dim=1)


def around(steps: Tensor, middle: Tensor) -> Tensor:
    """Put ``middle [image, ...]`` back among ``[image, length - 1, ...]``; undoes `neighbours`."""
    before, after = steps.chunk(2, dim=1)
    return torch.cat([before, middle.unsqueeze(1), after], dim=1)


def enlarge(fields: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate ``[image, step, channel, rows, columns]`` to ``[image, step, channel, *size]``."""
    fine = functional.interpolate(fields.flatten(0, 1), tuple(size), mode="bilinear", align_corners=False)
    return fine.view(*fields.shape[:3], *size)


def warp(images: Tensor, paths: Tensor) -> Tensor:
    """Move ``images [image, channel, height, width]`` into frames ``[image, step, channel, height, width]``.

    ``paths [image, step, 2, rows, columns]`` lead from each place of a step to where it is in the image,
    (right, down) in parts of the width and height. The border is repeated.
    """
    height, width = images.shape[-2:]
    steps = paths.shape[1]
    rows, columns = (
        (torch.arange(size, dtype=paths.dtype, device=paths.device) * 2 + 1) / size - 1
        for size in (height, width)
    )
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = place + 2 * enlarge(paths, (height, width)).movedim(2, -1)
    # Steps are rows of one tall frame, so that the image needs no copy for each.
    moved = functional.grid_sample(images, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    return moved.reshape(len(images), -1, steps, height, width).movedim(2, 1)


def step_flow(paths: Tensor) -> Tensor:
    """Flow from each step to the next out of paths into one image, both in parts of the width and height.

    Maps ``[image, step, 2, rows, columns]`` to one step less. A place x of a step and x + flow of the next
    are the same place of the image: ``flow(x) = path(x) - next path(x + flow(x))``, iterated twice.
    """
    here, ahead = paths[:, :-1], paths[:, 1:]
    flow = here - ahead
    for _ in range(2):
        flow = here - warp(ahead.flatten(0, 1), flow.flatten(0, 1).unsqueeze(1)).view_as(flow)
    return flow
