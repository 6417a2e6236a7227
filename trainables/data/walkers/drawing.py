"""Small articulated pedestrians, drawn with OpenCV.

A walker is a jointed 3-D figure (feet, knees, hips, shoulders, elbows, hands). Its upper garment is a texture
wrapped around the torso, so that a back print or a backpack is visible only from behind. All randomness comes
from a ``numpy`` generator that the caller seeds: equal seeds give equal pixels.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Image = NDArray[np.uint8]
Point = NDArray[np.float64]
_T = TypeVar("_T")

_TEXTURE_ROWS, _TEXTURE_COLUMNS = 48, 96

# There are few colours, so that many identities share a shirt or trousers, as in the real sets.
_UPPER_COLOURS = (
    (30, 30, 34), (222, 220, 214), (122, 124, 128), (36, 46, 92), (160, 40, 44),
    (60, 98, 66), (182, 162, 128), (76, 118, 176), (206, 168, 66), (196, 128, 150),
)  # fmt: skip
_LOWER_COLOURS = (
    (30, 30, 34),
    (48, 60, 98),
    (104, 124, 160),
    (96, 96, 100),
    (148, 130, 100),
    (196, 190, 178),
)
_SHOE_COLOURS = ((24, 24, 26), (206, 204, 200), (92, 62, 42))
_BAG_COLOURS = ((26, 26, 30), (150, 40, 44), (44, 62, 120), (120, 88, 56), (84, 108, 70))
_HAIR_COLOURS = ((22, 20, 20), (48, 34, 26), (104, 72, 44), (128, 124, 120))
_SKIN_COLOURS = ((232, 196, 170), (214, 170, 138), (170, 122, 90), (112, 78, 58))


@dataclass(frozen=True, slots=True)
class Walker:
    """One identity: body, clothes, bag and gait.

    Lengths are fractions of the tallest stature, angles are in radians.
    """

    stature: float
    build: float
    leg: float
    head: float
    skin: Colour
    hair: Literal["short", "long", "bun", "cap"]
    hair_colour: Colour
    garment: Image
    """Texture of the upper garment, ``[row, angle, 3]``: row 0 is the neck, the middle column the front."""
    hem: float
    sleeve: float
    sleeve_colour: Colour
    lower: Literal["trousers", "shorts", "skirt"]
    lower_colour: Colour
    shoe_colour: Colour
    bag: Literal["none", "backpack", "shoulder", "hand"]
    bag_colour: Colour
    cadence: float
    stride: float
    knee: float
    swing: float
    elbow: float
    lean: float


def draw_walker(rng: np.random.Generator) -> Walker:
    """Draw a random identity."""
    garment, sleeve_colour = _garment(rng)
    lower: Literal["trousers", "shorts", "skirt"] = choose(
        rng, ("trousers", "shorts", "skirt"), (0.68, 0.2, 0.12)
    )
    return Walker(
        stature=rng.uniform(0.86, 1.0),
        build=rng.uniform(0.8, 1.28),
        leg=rng.uniform(0.47, 0.52),
        head=rng.uniform(0.064, 0.074),
        skin=_colour(rng, _SKIN_COLOURS),
        hair=choose(rng, ("short", "long", "bun", "cap"), (0.5, 0.28, 0.12, 0.1)),
        hair_colour=_colour(rng, _HAIR_COLOURS),
        garment=garment,
        hem=rng.choice([1.0, 1.0, 1.12, 1.3]),
        sleeve=rng.choice([0.28, 0.34, 1.0, 1.0]),
        sleeve_colour=sleeve_colour,
        lower=lower,
        lower_colour=_colour(rng, _LOWER_COLOURS),
        shoe_colour=_colour(rng, _SHOE_COLOURS),
        bag=choose(rng, ("none", "backpack", "shoulder", "hand"), (0.5, 0.22, 0.16, 0.12)),
        bag_colour=_colour(rng, _BAG_COLOURS),
        cadence=rng.uniform(0.4, 0.62),
        stride=rng.uniform(0.36, 0.56),
        knee=rng.uniform(0.55, 0.95),
        swing=rng.uniform(0.2, 0.6),
        elbow=rng.uniform(0.1, 0.6),
        lean=rng.uniform(-0.01, 0.035),
    )


def draw_figure(
    canvas: Image,
    walker: Walker,
    phase: float,
    heading: float,
    feet: tuple[float, float],
    scale: float,
    pitch: float = 0.1,
    light: float = 0.5,
) -> None:
    """Draw a walker on the RGB image ``canvas [row, column, 3]``, in place.

    Args:
        canvas: the image.
        walker: the identity.
        phase: phase of the gait cycle, radians.
        heading: walking direction, radians; 0 is towards the camera, pi/2 to the right.
        feet: point on the ground (column, row), pixels.
        scale: tallest stature, pixels.
        pitch: downward angle of the camera, radians.
        light: direction of the light, radians.
    """
    joints = _pose(walker, phase)
    sin, cos = math.sin(heading), math.cos(heading)
    lower, level = math.sin(pitch), math.cos(pitch)
    sway = 0.008 * math.sin(2 * phase)

    def project(point: Point) -> tuple[Point, float]:
        x, y, z = point.tolist()
        across, depth = x * cos + z * sin + sway, z * cos - x * sin
        return np.array([feet[0] + scale * across, feet[1] - scale * (y * level - depth * lower)]), depth

    _shadow(canvas, feet, scale)
    at = {name: project(point) for name, point in joints.items()}
    size, side_light = scale * walker.stature, math.copysign(1.0, light)
    parts: list[tuple[float, Callable[[], None]]] = []
    for limb in _limbs(walker):
        (start, near), (end, far) = at[limb.start], at[limb.end]
        depth = (near + far) / 2
        stroke = functools.partial(
            _capsule,
            canvas,
            start,
            start + (end - start) * limb.reach,
            (size * limb.radii[0], size * limb.radii[1]),
            _shade(limb.colour, 1.0 if depth > -0.02 else 0.84),
            side_light,
        )
        parts.append((depth + limb.lift, stroke))
    if walker.bag != "none":
        corners = [project(corner) for corner in _bag_corners(walker, joints)]
        outline = np.array([corner[0] for corner in corners])
        depth = float(np.mean([corner[1] for corner in corners]))
        parts.append((depth, lambda: _bag(canvas, walker, outline, at)))
    parts.append((0.0, lambda: _torso(canvas, walker, at, (sin, cos), heading, light, scale)))
    parts.append((0.015 if cos > -0.2 else 0.03, lambda: _head(canvas, walker, at, (sin, cos), scale)))
    for _, draw in sorted(parts, key=lambda part: part[0]):
        draw()


@dataclass(frozen=True, slots=True)
class _Limb:
    """Limb or its clothing, which covers the fraction ``reach`` of the way from joint ``start`` to ``end``.

    ``lift`` is the distance above the skin, for the order of drawing.
    """

    start: str
    end: str
    radii: tuple[float, float]
    colour: Colour
    reach: float = 1.0
    lift: float = 0.0


def _limbs(walker: Walker) -> Iterator[_Limb]:
    broad = walker.build**0.7
    leg = walker.lower_colour if walker.lower == "trousers" else walker.skin
    cover = min(1.0, walker.sleeve * 2)
    for side in "lr":
        hip, knee, ankle, toe, shoulder, elbow, hand = (
            f"{joint}_{side}" for joint in ("hip", "knee", "ankle", "toe", "shoulder", "elbow", "hand")
        )
        yield _Limb(hip, knee, (0.052 * broad, 0.036 * broad), leg)
        yield _Limb(knee, ankle, (0.034 * broad, 0.024), leg)
        yield _Limb(ankle, toe, (0.026, 0.02), walker.shoe_colour, lift=0.002)
        if walker.lower == "shorts":
            yield _Limb(hip, knee, (0.056 * broad, 0.05 * broad), walker.lower_colour, 0.85, 0.004)
        yield _Limb(shoulder, elbow, (0.033 * broad, 0.026 * broad), walker.skin)
        yield _Limb(elbow, hand, (0.025 * broad, 0.019), walker.skin)
        yield _Limb(shoulder, elbow, (0.037 * broad, 0.031 * broad), walker.sleeve_colour, cover, 0.003)
        if walker.sleeve > 0.5:
            yield _Limb(elbow, hand, (0.03 * broad, 0.024), walker.sleeve_colour, 0.88, 0.003)


def _shadow(canvas: Image, feet: tuple[float, float], scale: float) -> None:
    dark = canvas.copy()
    centre, size = (int(feet[0]), int(feet[1])), (int(0.17 * scale), int(0.03 * scale))
    cv2.ellipse(dark, centre, size, 0, 0, 360, (30.0, 30.0, 32.0), -1, cv2.LINE_AA)
    cv2.addWeighted(dark, 0.45, canvas, 0.55, 0, dst=canvas)


def _pose(walker: Walker, phase: float) -> dict[str, Point]:
    """Return joint positions ``(left, up, forward)`` of a walking figure that stands on the ground."""
    size = walker.stature
    leg, wide = walker.leg * size, walker.build**0.8 * size
    thigh = shank = 0.47 * leg
    joints: dict[str, Point] = {}
    for side, sign, swing in (("l", 1.0, phase), ("r", -1.0, phase + np.pi)):
        forward = walker.stride * np.sin(swing)
        bend = 0.1 + walker.knee * max(0.0, np.cos(swing))
        hip = np.array([sign * 0.05 * wide, leg, 0.0])
        knee = hip + thigh * np.array([0.0, -np.cos(forward), np.sin(forward)])
        ankle = knee + shank * np.array([0.0, -np.cos(forward - bend), np.sin(forward - bend)])
        pitch = 0.6 * (forward - bend) - 0.1
        toe = ankle + 0.075 * size * np.array([0.12 * sign, np.sin(pitch), np.cos(pitch)])
        shoulder = np.array([sign * 0.108 * wide, 0.815 * size, walker.lean])
        arm = -walker.swing * np.sin(swing)
        elbow = shoulder + 0.165 * size * np.array([sign * 0.12, -np.cos(arm), np.sin(arm)])
        fold = arm + walker.elbow + 0.3 * max(0.0, -np.sin(swing))
        hand = elbow + 0.16 * size * np.array([0.0, -np.cos(fold), np.sin(fold)])
        for name, point in (("hip", hip), ("knee", knee), ("ankle", ankle), ("toe", toe),
                            ("shoulder", shoulder), ("elbow", elbow), ("hand", hand)):  # fmt: skip
            joints[f"{name}_{side}"] = point
    joints["neck"] = np.array([0.0, 0.85 * size, walker.lean])
    joints["pelvis"] = np.array([0.0, leg - 0.03 * size, 0.0])
    joints["head"] = np.array([0.0, 0.925 * size, 1.5 * walker.lean])
    lowest = min(joints[f"{name}_{side}"][1] for name in ("ankle", "toe") for side in "lr") - 0.02 * size
    for point in joints.values():
        point[1] -= lowest
    return joints


def _torso(
    canvas: Image,
    walker: Walker,
    at: dict[str, tuple[Point, float]],
    facing: tuple[float, float],
    heading: float,
    light: float,
    scale: float,
) -> None:
    """Draw neck, skirt and upper garment as elliptic cylinders, whose width depends on the heading."""
    sin, cos = facing
    top, bottom = at["neck"][0], at["pelvis"][0]
    size = scale * walker.stature

    def silhouette(across: float, deep: float) -> float:
        return float(size * np.hypot(across * cos, deep * sin))

    build = walker.build**0.8
    _capsule(canvas, top, at["head"][0], (0.034 * size, 0.03 * size), _shade(walker.skin, 0.9), 0.0)
    waist = [silhouette(0.092 * build, 0.07 * walker.build), silhouette(0.1 * build, 0.082 * walker.build)]
    below = bottom - top
    if walker.lower == "skirt":
        cloth = np.broadcast_to(np.array(walker.lower_colour, np.uint8), (1, 1, 3))
        spread = silhouette(0.125 * build, 0.12)
        flare = (waist[0], waist[1], spread)
        _wrap(canvas, cloth, top + 0.85 * below, top + 1.62 * below, (0.0, 0.25, 1.0), flare, heading, light)
    widths = (
        silhouette(0.045, 0.045),
        silhouette(0.118 * build, 0.062 * walker.build),
        *waist,
        waist[1] * 1.04,
    )
    _wrap(
        canvas,
        walker.garment,
        top,
        top + walker.hem * below,
        (0.0, 0.1, 0.6, 0.85, 1.0),
        widths,
        heading,
        light,
    )


def _wrap(
    canvas: Image,
    texture: NDArray[np.uint8],
    top: Point,
    bottom: Point,
    heights: tuple[float, ...],
    widths: tuple[float, ...],
    heading: float,
    light: float,
) -> None:
    """Paint the visible half of a texture ``[row, angle, 3]`` on an upright tube.

    ``widths`` are the tube's half-widths in pixels at relative ``heights`` in 0..1.
    """
    limit = max(widths) + 1
    first, last = max(0, int(top[1])), min(canvas.shape[0], int(bottom[1]) + 1)
    left = max(0, int(min(top[0], bottom[0]) - limit))
    right = min(canvas.shape[1], int(max(top[0], bottom[0]) + limit) + 1)
    if first >= last or left >= right:
        return
    down = np.clip((np.arange(first, last, dtype=np.float32) - top[1]) / (bottom[1] - top[1]), 0, 1)
    middle = top[0] + (bottom[0] - top[0]) * down
    half = np.interp(down, heights, widths)
    across = ((np.arange(left, right, dtype=np.float32) - middle[:, None]) / half[:, None]).astype(np.float32)
    angle = np.arcsin(np.clip(across, -1, 1))
    column = (((angle - heading) / (2 * np.pi) + 0.5) % 1.0 * texture.shape[1]).astype(
        np.intp
    ) % texture.shape[1]
    row = (down * (texture.shape[0] - 1)).astype(np.intp)
    light_factor = 0.68 + 0.36 * np.cos(angle - light)
    pixels = np.minimum(texture[row[:, None], column] * light_factor[..., None], 255).astype(np.uint8)
    np.copyto(canvas[first:last, left:right], pixels, where=(np.abs(across) <= 1)[..., None])


def _head(
    canvas: Image,
    walker: Walker,
    at: dict[str, tuple[Point, float]],
    facing: tuple[float, float],
    scale: float,
) -> None:
    sin, cos = facing
    centre = at["head"][0]
    r = scale * walker.head * walker.stature
    hair = walker.hair_colour
    back = centre + r * np.array([-0.28 * sin, -0.1])
    if walker.hair == "long" and cos > 0:
        _capsule(canvas, back, back + r * np.array([-0.2 * sin, 1.35]), (0.86 * r, 0.66 * r), hair, 0.0)
    _ellipse(canvas, centre + r * np.array([0.0, 0.06]), (0.8 * r, 1.04 * r), _shade(walker.skin, 0.95))
    if walker.hair == "bun":
        _ellipse(canvas, centre + r * np.array([-0.8 * sin, -0.75]), (0.42 * r, 0.42 * r), hair)
    _ellipse(canvas, back, (0.86 * r, 0.98 * r), hair)
    if cos > -0.5:
        wide = r * (0.34 + 0.34 * max(0.0, cos) ** 0.5)
        _ellipse(canvas, centre + r * np.array([0.42 * sin, 0.26]), (wide, 0.8 * r), walker.skin)
    if walker.hair == "long" and cos <= 0:
        _capsule(canvas, back, back + r * np.array([-0.3 * sin, 1.5]), (0.88 * r, 0.75 * r), hair, 0.0)
    if walker.hair == "cap":
        _ellipse(canvas, centre + r * np.array([0.0, -0.55]), (0.92 * r, 0.58 * r), walker.bag_colour)
        _ellipse(
            canvas,
            centre + r * np.array([0.75 * sin, -0.22]),
            (0.75 * r, 0.18 * r),
            _shade(walker.bag_colour, 0.8),
        )


def _bag_corners(walker: Walker, joints: dict[str, Point]) -> NDArray[np.float64]:
    """Return the eight corners ``[8, 3]`` of the bag's box, in the figure's axes."""
    size = walker.stature
    if walker.bag == "backpack":
        centre, half = (joints["neck"] + joints["pelvis"]) / 2 + [0, 0.03, -0.115], (0.078, 0.11, 0.05)
    elif walker.bag == "shoulder":
        centre, half = joints["pelvis"] + [0.13 * walker.build, 0.0, -0.02], (0.028, 0.062, 0.075)
    else:
        centre, half = joints["hand_r"] - [0.01, 0.085, 0], (0.025, 0.06, 0.065)
    signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, 8).T
    return np.asarray(centre + size * signs * half, np.float64)


def _bag(
    canvas: Image, walker: Walker, outline: NDArray[np.float64], at: dict[str, tuple[Point, float]]
) -> None:
    hull = cv2.convexHull(outline.astype(np.float32))[:, 0]
    fill(canvas, hull, walker.bag_colour)
    middle = hull.mean(0)
    fill(
        canvas,
        middle + (hull - middle) * [0.7, 0.45] + [0, 0.12 * np.ptp(hull[:, 1])],
        _shade(walker.bag_colour, 1.35),
    )
    if walker.bag == "shoulder":
        strap = np.array([at["shoulder_r"][0], middle])
        cv2.line(canvas, _pixel(strap[0]), _pixel(strap[1]), walker.bag_colour, 4, cv2.LINE_AA, 3)
    elif walker.bag == "hand":
        cv2.line(canvas, _pixel(at["hand_r"][0]), _pixel(middle), walker.bag_colour, 4, cv2.LINE_AA, 3)


def _garment(rng: np.random.Generator) -> tuple[Image, Colour]:
    """Draw a random texture of the upper body; return it with the colour of its sleeves."""
    base, other = _colour(rng, _UPPER_COLOURS), _colour(rng, _UPPER_COLOURS)
    texture = np.empty((_TEXTURE_ROWS, _TEXTURE_COLUMNS, 3), np.float32)
    texture[:] = base
    rows, columns = np.arange(_TEXTURE_ROWS), np.arange(_TEXTURE_COLUMNS)
    front = _TEXTURE_COLUMNS // 2
    sleeves = base
    period = int(rng.integers(8, 16))
    pattern = choose(
        rng, ("plain", "print", "jacket", "stripes", "blocks", "check"), (0.36, 0.2, 0.16, 0.12, 0.1, 0.06)
    )
    if pattern == "stripes":
        texture[rows % period < period // 3] = other
    elif pattern == "check":
        texture[rows % period < period // 3] = other
        texture[:, columns % period < period // 3] = (np.array(base) + other) / 2
    elif pattern == "blocks":
        texture[int(rng.integers(16, 34)) :] = other
    elif pattern == "jacket":
        opening = int(rng.integers(4, 9))
        texture[:, front - opening : front + opening] = other
    elif pattern == "print":
        at = front if rng.random() < 0.7 else 0
        wide, high = int(rng.integers(5, 12)), int(rng.integers(5, 11))
        span = np.arange(at - wide, at + wide) % _TEXTURE_COLUMNS
        texture[16 - high // 2 : 16 + high, span] = other
    if rng.random() < 0.15:
        sleeves = other
    folds = cv2.GaussianBlur(rng.normal(0, 1, texture.shape[:2]).astype(np.float32), (0, 0), 3)
    texture *= (1 + 0.5 * folds)[..., None]
    texture[:3] *= 0.8
    return np.clip(texture, 0, 255).astype(np.uint8), sleeves


def _capsule(
    canvas: Image, start: Point, stop: Point, radii: tuple[float, float], colour: Colour, light: float
) -> None:
    """Draw a rounded, tapered limb with a lighter stripe on the side of the light."""
    (ax, ay), (bx, by) = start.tolist(), stop.tolist()
    length = math.hypot(bx - ax, by - ay) or 1.0
    nx, ny = (ay - by) / length, (bx - ax) / length
    dark = _shade(colour, 0.86)
    for at, radius in (((ax, ay), radii[0]), ((bx, by), radii[1])):
        cv2.circle(canvas, _pixel(at), int(radius * 8), dark, -1, cv2.LINE_AA, 3)
    middle = math.copysign(0.3, nx) * light
    for low, high, tint in ((-1.0, 1.0, dark), (middle - 0.6, middle + 0.6, _shade(colour, 1.06))):
        corners = [
            (x + side * radius * nx, y + side * radius * ny)
            for x, y, radius, sides in ((ax, ay, radii[0], (low, high)), (bx, by, radii[1], (high, low)))
            for side in sides
        ]
        fill(canvas, np.array(corners), tint)


def _ellipse(canvas: Image, centre: Point, axes: tuple[float, float], colour: Colour) -> None:
    size = int(axes[0] * 8), int(axes[1] * 8)
    cv2.ellipse(canvas, _pixel(centre), size, 0, 0, 360, colour, -1, cv2.LINE_AA, 3)


def fill(canvas: Image, corners: NDArray[Any], colour: Colour) -> None:
    """Fill a convex polygon with ``corners [corner, 2]`` as (column, row) in pixels."""
    cv2.fillConvexPoly(canvas, np.round(corners * 8).astype(np.int32), colour, cv2.LINE_AA, 3)


def _pixel(point: Point | tuple[float, float]) -> tuple[int, int]:
    """Return fixed-point coordinates with three fractional bits, which OpenCV calls take as ``shift=3``."""
    return round(point[0] * 8), round(point[1] * 8)


def _shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _colour(rng: np.random.Generator, palette: tuple[tuple[int, int, int], ...]) -> Colour:
    """Draw a colour of a palette with noise, so that identities of one colour are similar, not equal."""
    colour = np.asarray(palette[rng.integers(len(palette))], np.float32)
    red, green, blue = np.clip(colour + rng.normal(0, 5, 3), 0, 255).tolist()
    return red, green, blue


def choose(rng: np.random.Generator, values: tuple[_T, ...], weights: tuple[float, ...]) -> _T:
    """Draw one of ``values`` with probabilities ``weights``."""
    return values[rng.choice(len(values), p=weights)]
