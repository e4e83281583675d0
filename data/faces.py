"""Drawn faces, 64x64, for machines without CelebA: portraits of ellipses and curves from random
parameters.

They are cartoons, not a data set of people. What they share with one is what Section 4 needs: some
forty continuous and discrete factors (skin, hair, eyes, brows, nose, mouth, beard, glasses, pose,
light, clothes, background) for a generator with 100 latents to learn.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

NAME = "drawn faces"
SIZE = 64
CHUNK = 32  # portraits painted at a time; their tables stay in the processor's cache

# Colours, red green blue in per cent, between neighbours of which each portrait's own is mixed.
SKIN = np.array([(98, 85, 74), (91, 71, 56), (76, 54, 38), (52, 34, 24), (34, 22, 16)]) / 100
HAIR = np.array([(9, 7, 6), (26, 16, 9), (47, 29, 14), (86, 70, 38), (62, 24, 10)]) / 100
IRIS = np.array([(25, 14, 7), (38, 26, 12), (25, 42, 30), (26, 45, 70)]) / 100
WHITE, DARK = np.array(((0.96, 0.96, 0.94), (0.10, 0.07, 0.07)), np.float32)

# Bands of rows, of which only one is painted for a feature: what reaches out of it is cut off.
ALL, TOP, EYES = slice(0, 64), slice(0, 40), slice(16, 46)
NOSE, MOUTH, BOTTOM = slice(24, 52), slice(34, 60), slice(36, 64)


def draw(count: int, seed: int = 0) -> np.ndarray:
    """Portraits, uint8, (count, 3, 64, 64), red green blue; more of a seed begin with the same."""
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)

    def fill(start: int) -> None:
        painted = _portraits(np.random.default_rng((seed, start // CHUNK)))
        images[start : start + CHUNK] = painted[: count - start]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets other threads run
        list(pool.map(fill, range(0, count, CHUNK)))
    return images


class _Canvas:
    """CHUNK images, and where their pixels lie on the head: x right, y down, a face 1.6 wide."""

    def __init__(self, scale: np.ndarray, roll: np.ndarray, right: np.ndarray, down: np.ndarray):
        row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32)[:, None]
        dx, dy = column - 31.5 - right, row - 33.5 - down
        self.x = (np.cos(roll) * dx + np.sin(roll) * dy) / scale
        self.y = (np.cos(roll) * dy - np.sin(roll) * dx) / scale
        self.scale = scale
        self.image = np.zeros((CHUNK, 3, SIZE, SIZE), np.float32)

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Coverage of pixels by a shape, given distances from its contour, negative inside."""
        return np.clip(0.5 - distance * self.scale, 0, 1)

    def ellipse(self, rows: slice, cx, cy, rx, ry, tilt=0.0) -> np.ndarray:
        x, y = self.x[:, rows] - cx, self.y[:, rows] - cy
        u, v = (x + tilt * y) / rx, (y - tilt * x) / ry
        return self.inside((np.sqrt(u * u + v * v) - 1) * np.minimum(rx, ry))

    def paint(self, rows: slice, coverage: np.ndarray, colour: np.ndarray, shade=None) -> None:
        """Lay a colour, (CHUNK, 3) or (3,), over `rows` where covered; shade: of every pixel."""
        shades = np.float32(1) if shade is None else shade[:, rows]
        for c in range(3):
            part = self.image[:, c, rows]
            target = np.broadcast_to(colour, (CHUNK, 3))[:, c, None, None] * shades
            part += coverage * (target - part)


def _portraits(rng: np.random.Generator) -> np.ndarray:
    """CHUNK portraits, uint8 (CHUNK, 3, 64, 64), painted from back to front."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (CHUNK, 1, 1)).astype(np.float32)

    def normal(scale: float) -> np.ndarray:
        return (scale * rng.standard_normal((CHUNK, 1, 1)).clip(-2, 2)).astype(np.float32)

    def chance(p: float) -> np.ndarray:
        return (rng.random((CHUNK, 1, 1)) < p).astype(np.float32)

    def mixed(palette: np.ndarray) -> np.ndarray:
        place = rng.uniform(0, len(palette) - 1, CHUNK)
        first = np.minimum(place.astype(int), len(palette) - 2)
        part = (place - first)[:, None]
        return ((1 - part) * palette[first] + part * palette[first + 1]).astype(np.float32)

    canvas = _Canvas(uniform(20.0, 24.0), normal(0.07), normal(1.2), normal(1.0))
    x, y, paint, ellipse = canvas.x, canvas.y, canvas.paint, canvas.ellipse
    yaw, pitch = normal(0.09), normal(0.04)  # how far the features move on the face
    skin, hair, iris = mixed(SKIN), mixed(HAIR), mixed(IRIS)
    grey = chance(0.12)[:, 0]
    hair = (1 - 0.8 * grey) * hair + 0.8 * grey * 0.75
    light_x, light_y = normal(0.22), uniform(-0.22, 0.05)
    light = 1 + light_x * x + light_y * y  # the same on skin, hair and clothes

    # Background: two colours, one fading into the other along a random direction.
    back = rng.uniform(0.05, 0.95, (CHUNK, 1)) + 0.18 * rng.standard_normal((CHUNK, 3))
    back = back.clip(0, 1)
    shift = 0.22 * rng.standard_normal((CHUNK, 1))
    other = (back + shift + 0.1 * rng.standard_normal((CHUNK, 3))).clip(0, 1)
    angle = uniform(0, 2 * np.pi)
    paint(ALL, np.ones((), np.float32), back.astype(np.float32))
    fading = np.clip(0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1)
    paint(ALL, fading, other.astype(np.float32))

    # Head: an ellipse that narrows towards the chin.
    width, height, jaw = uniform(0.72, 0.86), uniform(1.0, 1.12), uniform(0.05, 0.28)
    long, bald = chance(0.45), chance(0.07)
    volume = uniform(0.06, 0.24)
    behind = ellipse(ALL, yaw * 0.3, -0.18, width + volume, height * 0.9 + volume)
    hanging = canvas.inside(np.abs(x - yaw * 0.3) - (width + volume - 0.02))
    hanging *= canvas.inside(uniform(-0.2, 0.1) - y)
    hanging *= canvas.inside(y - uniform(0.7, 1.7))
    paint(ALL, np.maximum(behind, hanging * long) * (1 - bald), hair * 0.8, light)
    neck = canvas.inside(np.abs(x[:, BOTTOM]) - uniform(0.34, 0.46))
    paint(BOTTOM, neck * canvas.inside(0.4 - y[:, BOTTOM]), skin * 0.8, light)
    clothes = rng.uniform(0.05, 0.9, (CHUNK, 3)).astype(np.float32)
    body = ellipse(BOTTOM, 0, 2.05, uniform(1.2, 1.6), uniform(0.72, 0.9))
    paint(BOTTOM, body, clothes, light)
    ear_y, covered = 0.02 + pitch, long * chance(0.8)
    for side in (-1, 1):
        ear = ellipse(NOSE, side * (width + 0.02) - yaw * 0.3, ear_y, 0.10, 0.19)
        paint(NOSE, ear * (1 - covered), skin * 0.88, light)
    narrow = width * (1 - jaw * np.clip(y, 0, 1) ** 2)
    face = canvas.inside((np.sqrt((x / narrow) ** 2 + (y / height) ** 2) - 1) * width)
    paint(ALL, face, skin, light)

    # Cheeks, beard and hair above the forehead, parted at the side or falling into it.
    blush = skin * np.array((1.0, 0.72, 0.70), np.float32)
    for side in (-1, 1):
        soft = ((x[:, NOSE] - side * 0.42 - yaw) / 0.24) ** 2 + ((y[:, NOSE] - 0.30) / 0.18) ** 2
        paint(NOSE, np.exp(-soft) * uniform(0.0, 0.6), blush, light)
    bearded, beard_top = chance(0.25) * (1 - long) * uniform(0.3, 1.0), uniform(0.30, 0.5)
    beard = slice(MOUTH.start, SIZE)
    rim = canvas.inside(beard_top + 0.2 - 0.6 * np.abs(x[:, beard] - yaw) - y[:, beard])
    paint(beard, face[:, beard] * rim * bearded * 0.85, hair * 0.9, light)
    hairline, arch, part = uniform(-0.72, -0.38), uniform(0.1, 0.7), normal(0.35)
    fringe = canvas.inside(y[:, TOP] - hairline - arch * (x[:, TOP] - part) ** 2)
    top = np.maximum(behind[:, TOP], face[:, TOP])
    paint(TOP, fringe * top * (1 - bald), hair, light * uniform(0.95, 1.25))

    # Eyes, lids and brows.
    eye_x, eye_y, eye_w = uniform(0.29, 0.37), -0.12 + normal(0.03) + pitch, uniform(0.13, 0.18)
    eye_h, slant, gaze = uniform(0.045, 0.095), normal(0.08), normal(0.035)
    brow_y, brow_h, brow_slant = uniform(0.17, 0.27), uniform(0.022, 0.06), normal(0.15)
    socket = skin * 0.82
    for side in (-1, 1):
        cx = side * eye_x + yaw
        paint(EYES, ellipse(EYES, cx, eye_y - 0.02, eye_w * 1.25, eye_h * 1.9), socket, light)
        white = ellipse(EYES, cx, eye_y, eye_w, eye_h, side * slant)
        paint(EYES, white, WHITE)
        paint(EYES, white * ellipse(EYES, cx + gaze, eye_y, 0.075, 0.075), iris)
        paint(EYES, white * ellipse(EYES, cx + gaze, eye_y, 0.036, 0.036), DARK)
        lid = ellipse(EYES, cx, eye_y - 0.035, eye_w * 1.1, eye_h * 1.1, side * slant) * (1 - white)
        paint(EYES, lid * 0.8, DARK)
        bent = eye_y - brow_y + 1.2 * (x[:, EYES] - cx) ** 2 + side * brow_slant * (x[:, EYES] - cx)
        brow = canvas.inside(np.abs(y[:, EYES] - bent) - brow_h)
        brow *= canvas.inside(np.abs(x[:, EYES] - cx) - 0.21)
        paint(EYES, brow * 0.9, hair * 0.7)
    glasses, frame = chance(0.15), rng.uniform(0, 0.4, (CHUNK, 3)).astype(np.float32)
    for side in (-1, 1):
        cx, cy, thick = side * (eye_x + 0.01) + yaw, eye_y + 0.02, 0.028
        outer = ellipse(EYES, cx, cy, 0.27 + thick, 0.21 + thick)
        paint(EYES, glasses * (outer - ellipse(EYES, cx, cy, 0.27 - thick, 0.21 - thick)), frame)
    bridge = canvas.inside(np.abs(y[:, EYES] - eye_y) - 0.03)
    bridge *= canvas.inside(np.abs(x[:, EYES] - yaw) - 0.06)
    paint(EYES, glasses * bridge, frame)

    # Nose: a shadow on the side away from the light, a tip, two nostrils.
    nose_y, nose_w = uniform(0.22, 0.34) + pitch, uniform(0.09, 0.16)
    away, tip = np.where(light_x > 0, -1, 1), 1.6 * yaw
    shadow = ellipse(NOSE, yaw + away * nose_w * 0.55, nose_y - 0.16, 0.04, 0.22)
    paint(NOSE, shadow * 0.6, skin * 0.75, light)
    paint(NOSE, ellipse(NOSE, tip, nose_y, nose_w, 0.09), skin * 0.92, light)
    shine = ellipse(NOSE, tip, nose_y - 0.05, nose_w * 0.6, 0.08)
    paint(NOSE, shine * 0.7, np.minimum(skin * 1.1, 1), light)
    for side in (-1, 1):
        nostril = ellipse(NOSE, tip + side * nose_w * 0.5, nose_y + 0.06, 0.035, 0.022)
        paint(NOSE, nostril, skin * 0.4)

    # Mouth: two lips along a curve, and between them, if it is open, teeth.
    mouth_y, mouth_w = uniform(0.54, 0.64) + pitch, uniform(0.20, 0.36)
    smile, fullness = uniform(-0.15, 1.0), uniform(0.045, 0.085)
    opening = chance(0.4) * uniform(0.03, 0.10) * np.clip(smile + 0.4, 0, 1)
    lips = skin * np.array((0.85, 0.55, 0.52), np.float32)
    painted = chance(0.35)[:, 0]
    lips = (1 - painted) * lips + painted * np.array((0.75, 0.14, 0.20), np.float32)
    mx, my = x[:, MOUTH] - yaw, y[:, MOUTH] - mouth_y
    curve = 0.1 * smile - smile * mx**2
    taper = np.clip(1 - (mx / mouth_w) ** 2, 0, 1)
    ends = canvas.inside(np.abs(mx) - mouth_w)
    upper, lower = curve - (fullness + opening) * taper, curve + (fullness * 1.3 + opening) * taper
    paint(MOUTH, canvas.inside(np.maximum(upper - my, my - lower)) * ends, lips, light)
    gap = canvas.inside(np.abs(my - curve) - np.maximum(opening, 0.012) * taper) * ends
    paint(MOUTH, gap, np.where(opening[:, 0] > 0.02, WHITE, lips * 0.45))

    exposure = uniform(0.85, 1.08)[:, None]
    return (np.clip(canvas.image * exposure, 0, 1) * 255 + 0.5).astype(np.uint8)
