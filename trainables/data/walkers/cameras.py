"""Cameras that film walkers, with individual scenes, angles, colour responses, blur, noise and occluders.

All randomness comes from a ``numpy`` generator that the caller seeds: equal seeds give equal pixels.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from trainables.data.walkers.drawing import Colour, Image, Walker, choose, draw_figure, draw_walker, fill

HEIGHT, WIDTH = 128, 64
"""Height and width of a frame in pixels."""

_SUPERSAMPLING = 2
_SCENE_WIDTH = 640
_NOISE_PATTERNS = 8


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: its viewpoint, scene and colour response. Angles are in radians."""

    view: float
    """Mean walking direction: 0 towards the camera, pi/2 to the right, pi away from it."""
    spread: float
    pitch: float
    light: float
    scene: Image
    """Background at drawing resolution, ``[row, column, 3]``, which wraps around horizontally."""
    response: NDArray[np.float64]
    """Affine colour response ``[3, 4]`` on RGB in 0..255."""
    gamma: float
    exposure: float
    blur: float
    noise: NDArray[np.int16]
    """Noise patterns ``[pattern, row, column, 3]``."""
    looseness: float
    occlusion: float


def draw_camera(rng: np.random.Generator, view: float, difficulty: float) -> Camera:
    """Draw a random camera near the walking direction ``view``; ``difficulty`` scales its colour shift."""
    strength = 0.1 * difficulty
    fade = rng.uniform(0.05, 0.4) * min(1.0, difficulty)
    response = (1 - fade) * np.eye(3) + fade / 3 + rng.normal(0, 0.3 * strength, (3, 3))
    response *= np.exp(rng.normal(0, 0.6 * strength, (3, 1)))
    offset = rng.normal(0, 80 * strength) + rng.normal(0, 25 * strength, (3, 1))
    sigma = rng.uniform(2.0, 7.0) * difficulty
    patterns = rng.normal(0, 1, (_NOISE_PATTERNS, HEIGHT, WIDTH, 3)) * sigma
    return Camera(
        view=view + rng.normal(0, 0.2),
        spread=0.22,
        pitch=rng.uniform(0.03, 0.3),
        light=rng.uniform(-1.1, 1.1),
        scene=_scene(rng),
        response=np.hstack([response, offset]),
        gamma=float(np.exp(rng.normal(0, 1.8 * strength))),
        exposure=float(np.exp(rng.normal(0, strength))),
        blur=rng.uniform(0.3, 0.5 + 0.7 * difficulty),
        noise=patterns.round().astype(np.int16),
        looseness=rng.uniform(0.01, 0.03),
        occlusion=rng.uniform(0.1, 0.35) * difficulty,
    )


def draw_tracklet(
    walker: Walker | None, camera: Camera, frames: int, rng: np.random.Generator, step: int = 1
) -> Image:
    """Draw a walker that passes a camera; ``None`` draws a false detection.

    Returns:
        RGB frames ``[frames, 128, 64, 3]``, ``step`` units of time apart.
    """
    turn = camera.view + rng.normal(0, camera.spread) + (np.pi if rng.random() < 0.2 else 0.0)
    drift = rng.normal(0, 0.02)
    phase = rng.uniform(0, 2 * np.pi)
    start = rng.integers(_SCENE_WIDTH)
    brightness = float(np.exp(rng.normal(0, 0.09)))
    scale = HEIGHT * _SUPERSAMPLING * rng.uniform(0.86, 0.99)
    offset = rng.normal(0, camera.looseness, 2)
    occluder = _occluder(rng) if walker is None or rng.random() < camera.occlusion else None
    if walker is None:
        offset = rng.choice([-0.62, 0.6], 2)
    jitter = rng.normal(0, 0.35 * camera.looseness, (frames, 2))
    patterns = rng.integers(_NOISE_PATTERNS, size=frames)
    figure = walker or draw_walker(rng)
    speed = figure.cadence * figure.stride * 20
    curve = _tone_curve(camera, brightness)
    rows = HEIGHT * _SUPERSAMPLING
    columns = WIDTH * _SUPERSAMPLING
    out = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(frames):
        t = i * step
        heading = turn + drift * t
        pan = int(start + speed * np.sin(heading) * t) % _SCENE_WIDTH
        canvas = np.take(camera.scene, np.arange(pan, pan + columns), axis=1, mode="wrap")
        centre = columns * (0.5 + 2 * (offset[0] + jitter[i, 0]))
        ground = rows * (0.965 + offset[1] + jitter[i, 1])
        if occluder and not occluder.in_front:
            occluder.draw(canvas, t)
        moment = phase + figure.cadence * t
        draw_figure(canvas, figure, moment, heading, (centre, ground), scale, camera.pitch, camera.light)
        if occluder and occluder.in_front:
            occluder.draw(canvas, t)
        frame = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        frame = cv2.GaussianBlur(frame, (0, 0), camera.blur)
        frame = cv2.LUT(cv2.transform(frame, camera.response), curve)
        out[i] = np.clip(frame + camera.noise[patterns[i]], 0, 255)
    return out


@dataclass(frozen=True, slots=True)
class _Occluder:
    """Post, bicycle or other walker that crosses the frame. Lengths are in pixels."""

    kind: Literal["post", "bicycle", "walker"]
    in_front: bool
    at: float
    speed: float
    colour: Colour
    walker: Walker
    heading: float

    def draw(self, canvas: Image, t: int) -> None:
        rows = canvas.shape[0]
        x = self.at + self.speed * t
        if self.kind == "walker":
            feet = (x, rows * (0.97 if self.in_front else 0.9))
            draw_figure(canvas, self.walker, 0.5 * t, self.heading, feet, 0.9 * rows)
        elif self.kind == "post":
            fill(canvas, np.array([[x - 5, 0], [x + 5, 0], [x + 5, rows], [x - 5, rows]]), self.colour)
            cv2.line(canvas, (int(x), 0), (int(x), rows), (175.0, 175.0, 175.0), 2, cv2.LINE_AA)
        else:
            x, hub = int(x), int(rows * 0.87)
            left, right, pedals = (x - 34, hub), (x + 34, hub), (x + 2, hub)
            seat, bar = (x - 10, hub - 44), (x + 24, hub - 46)
            for wheel in (left, right):
                cv2.circle(canvas, wheel, 24, (26.0, 26.0, 28.0), 2, cv2.LINE_AA)
            for a, b in ((left, seat), (seat, pedals), (pedals, bar), (bar, right), (seat, bar)):
                cv2.line(canvas, a, b, self.colour, 4, cv2.LINE_AA)


def _occluder(rng: np.random.Generator) -> _Occluder:
    kind: Literal["post", "bicycle", "walker"] = choose(rng, ("post", "bicycle", "walker"), (0.3, 0.25, 0.45))
    columns = WIDTH * _SUPERSAMPLING
    side = rng.choice([-1, 1])
    # Another walker stays on one side of the box; a post or bicycle may cover its middle.
    at = columns * (0.5 + side * (rng.uniform(0.34, 0.6) if kind == "walker" else rng.uniform(0.1, 0.7)))
    return _Occluder(
        kind=kind,
        in_front=kind != "walker" or rng.random() < 0.4,
        at=float(at),
        speed=float(-side * rng.uniform(0.0, 2.5)),
        colour=_grey(rng, 40, 170, 14),
        walker=draw_walker(rng),
        heading=rng.uniform(0, 2 * np.pi),
    )


def _scene(rng: np.random.Generator) -> Image:
    """Draw a random background: a distant part (wall, trees, cars) and the ground."""
    rows = HEIGHT * _SUPERSAMPLING
    horizon = int(rows * rng.uniform(0.25, 0.6))
    scene = np.empty((rows, _SCENE_WIDTH, 3), np.float32)
    scene[:horizon] = rng.uniform(80, 190) + rng.normal(0, 8, 3)
    scene[horizon:] = rng.uniform(100, 180) + rng.normal(0, 6, 3)
    scene[horizon:] *= np.linspace(0.9, 1.12, rows - horizon, dtype=np.float32)[:, None, None]
    for _ in range(int(rng.integers(8, 26))):
        colour = _grey(rng, 30, 215, 16)
        x, y = int(rng.integers(_SCENE_WIDTH)), int(rng.integers(horizon + 10))
        w, h = int(rng.integers(8, 90)), int(rng.integers(10, 70))
        if rng.random() < 0.6:
            cv2.rectangle(scene, (x, y), (x + w, min(y + h, horizon + 12)), colour, -1)
        else:
            cv2.ellipse(scene, (x, y), (w // 2, h // 2), 0, 0, 360, colour, -1)
    for _ in range(int(rng.integers(2, 9))):
        y = int(rng.integers(horizon, rows))
        shade = tuple((scene[y, 0] * rng.choice([0.72, 0.85, 1.2])).tolist())
        cv2.line(scene, (0, y), (_SCENE_WIDTH, y), shade, int(rng.integers(1, 6)), cv2.LINE_AA)
    if rng.random() < 0.5:
        for x in range(0, _SCENE_WIDTH, _SCENE_WIDTH // int(rng.integers(6, 20))):
            end = (x + int(rng.integers(-30, 30)), rows)
            cv2.line(scene, (x, horizon), end, (120.0, 120.0, 120.0), 1, cv2.LINE_AA)
    rough = rng.normal(0, 1, (rows // 4, _SCENE_WIDTH // 4)).astype(np.float32)
    scene += 9 * cv2.resize(rough, (_SCENE_WIDTH, rows))[..., None]
    return np.clip(cv2.GaussianBlur(scene, (0, 0), rng.uniform(1.5, 3.5)), 0, 255).astype(np.uint8)


def _tone_curve(camera: Camera, brightness: float) -> Image:
    levels = np.arange(256) / 255
    return np.clip(255 * camera.exposure * brightness * levels**camera.gamma, 0, 255).astype(np.uint8)


def _grey(rng: np.random.Generator, dark: float, bright: float, tint: float) -> Colour:
    """Draw a street colour: a grey between two levels with a slight tint."""
    red, green, blue = (rng.uniform(dark, bright) + rng.normal(0, tint, 3)).tolist()
    return red, green, blue
