"""Simple shapes in small grey images: the world of a vision transformer.

Six classes on 24 x 24 pixels: square, diamond (a square on its corner), plus, saltire (a plus
turned by 45 degrees), circle, triangle; anywhere, of any size, filled or in outline, lighter or
darker than the ground, under noise. Square and plus have upright and level edges alone, diamond and
saltire sloping ones. An image is read as 36 patches of 4 x 4 pixels, row by row; before them stands
an empty one (position 0) where the answer is read. Inputs are values, not tokens
(`jaxinterp.Tokens`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxinterp.algorithmic.prompts import at_least_one, generator
from jaxinterp.metrics import logit_diff
from jaxinterp.model import Tokens
from jaxinterp.tasks import Task

NAMES = ("square", "diamond", "plus", "saltire", "circle", "triangle")
UPRIGHT, SLOPING = ("square", "plus"), ("diamond", "saltire")
SIZE, PATCH = 24, 4
SIDE = SIZE // PATCH  # patches in a row
WIDTH = PATCH**2
LENGTH = 1 + SIDE**2
RADIUS = (5.0, 9.0)  # pixels from a shape's centre to its edge, or corner
STROKE = 2.0  # width of outlines and half that of a bar
CONTRAST = (0.4, 1.2)
NOISE = 0.25  # standard deviation


class Places(NamedTuple):
    """How n shapes lie and look, all [n]: x, y, radius in pixels; filled; contrast, signed."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    filled: np.ndarray
    contrast: np.ndarray


class Images(NamedTuple):
    """pixels float32 [n 24 24], about 0; labels int32 [n], places in `NAMES`."""

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def tokens(self) -> Tokens:
        """As the model reads them."""
        return patches(self.pixels)


def images(n: int, seed: Any = 0) -> Images:
    """n images, each class as likely. Raises ``ValueError`` for n < 1."""
    at_least_one(n=n)
    rng = generator(seed)
    labels = rng.integers(0, len(NAMES), n).astype(np.int32)
    places, noise = _places(rng, n), rng.normal(0, NOISE, (n, SIZE, SIZE))
    return Images((drawn(labels, places) + noise).astype(np.float32), labels)


def task(n: int = 64, seed: int = 0, *, pair: tuple[str, str] = ("square", "diamond")) -> Task:
    """n images of the first shape, and twins of the second with the same place, looks and noise.

    The metric is the difference of the two shapes' logits at position 0 (role CLS).

    Raises ``ValueError`` for n < 1 and for shapes that there are not, or one twice.
    """
    at_least_one(n=n)
    if len(set(pair)) != 2 or not set(pair) <= set(NAMES):
        raise ValueError(f"pair={pair}, expected two of {', '.join(NAMES)}.")
    rng = generator(seed)
    places, noise = _places(rng, n), rng.normal(0, NOISE, (n, SIZE, SIZE))
    labels = [np.full(n, NAMES.index(name), np.int32) for name in pair]
    clean, corrupted = (
        patches((drawn(label, places) + noise).astype(np.float32)) for label in labels
    )
    return Task(
        name="shapes", clean=clean, corrupted=corrupted,
        metric=logit_diff(labels[0], labels[1], 0), answers=labels[0], wrong=labels[1],
        roles={"CLS": np.zeros(n, np.int32)}, clean_text=(pair[0],) * n,
        corrupted_text=(pair[1],) * n, seed=seed, corruption=pair[1],
        meta={"n_made": n, "pair": list(pair)},
    )  # fmt: skip


def patches(pixels: Any) -> Tokens:
    """Images [n 24 24] as inputs [n 37 16], the empty patch first.

    Raises ``ValueError`` for another shape.
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"Images have shape {list(pixels.shape)}, expected [n, {SIZE}, {SIZE}].")
    rows = pixels.reshape(-1, SIDE, PATCH, SIDE, PATCH).swapaxes(2, 3)
    rows = rows.reshape(-1, SIDE**2, WIDTH)
    values = np.concatenate([np.zeros_like(rows[:, :1]), rows], 1)
    ids = np.zeros(values.shape[:2], np.int32)
    return Tokens(ids, ids + np.arange(LENGTH, dtype=np.int32), values=values)


def drawn(labels: np.ndarray, places: Places) -> np.ndarray:
    """Shapes [n 24 24] without noise: their contrast inside, 0 outside, one pixel of transition."""
    at = np.arange(SIZE) + 0.5
    x, y, r = (a[:, None, None] for a in (places.x, places.y, places.radius))
    dx, dy = at[None, None, :] - x, at[None, :, None] - y
    level = np.maximum(abs(dx), abs(dy)) - r * 0.8
    sloping = (abs(dx) + abs(dy)) / 2**0.5 - r * 0.8
    along, across = (dx + dy) / 2**0.5, (dx - dy) / 2**0.5
    bars = _plus(dx, dy, r)
    turned = _plus(along, across, r)
    round_ = np.hypot(dx, dy) - r * 0.9
    # Equilateral: its edges are r / 2 from the centre.
    pointed = np.maximum(dy, abs(dx) * 3**0.5 / 2 - dy / 2) - r / 2
    distance = np.stack([level, sloping, bars, turned, round_, pointed])
    own = np.broadcast_to(distance, (len(NAMES), len(labels), SIZE, SIZE))[
        labels, np.arange(len(labels))
    ]
    outlined = abs(own + STROKE / 2) - STROKE / 2
    own = np.where(places.filled[:, None, None], own, outlined)
    return (0.5 - own).clip(0, 1) * places.contrast[:, None, None]


def _plus(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """How far outside two crossing bars a point is, negative inside."""
    width = STROKE
    one = np.maximum(abs(u) - r, abs(v) - width)
    other = np.maximum(abs(v) - r, abs(u) - width)
    return np.minimum(one, other)


def _places(rng: np.random.Generator, n: int) -> Places:
    radius = rng.uniform(*RADIUS, n)
    x, y = rng.uniform(radius, SIZE - radius, (2, n))
    contrast = rng.uniform(*CONTRAST, n) * rng.choice([-1, 1], n)
    return Places(x, y, radius, rng.random(n) < 0.5, contrast)
