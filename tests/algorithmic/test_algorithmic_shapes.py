"""The world of shapes: geometry by hand, patches by loops, twins that differ in shape alone."""

import math

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.algorithmic import shapes


def inside(name, x, y, r):
    """Whether a point (from the centre, y downwards) lies in a filled shape."""
    if name == "square":
        return max(abs(x), abs(y)) <= 0.8 * r
    if name == "diamond":
        return inside("square", (x + y) / math.sqrt(2), (x - y) / math.sqrt(2), r)
    if name == "plus":
        return min(abs(x), abs(y)) <= 2 and max(abs(x), abs(y)) <= r
    if name == "saltire":
        return inside("plus", (x + y) / math.sqrt(2), (x - y) / math.sqrt(2), r)
    if name == "circle":
        return math.hypot(x, y) <= 0.9 * r
    corners = [(r * math.sin(a), -r * math.cos(a)) for a in (0, 2 * math.pi / 3, -2 * math.pi / 3)]
    turns = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        turns.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    return all(t >= 0 for t in turns) or all(t <= 0 for t in turns)


@pytest.mark.parametrize("label", range(6))
def test_filled_shapes_by_hand(label):
    rng, n = np.random.default_rng(label), 8
    places = shapes.Places(
        *rng.uniform(9, 15, (2, n)), rng.uniform(5, 9, n), np.ones(n, bool), np.full(n, 0.7)
    )
    pixels = shapes.drawn(np.full(n, label), places)
    for i in range(n):
        for row in range(24):
            for column in range(24):
                x, y = column + 0.5 - places.x[i], row + 0.5 - places.y[i]
                near = {inside(shapes.NAMES[label], x + a, y + b, places.radius[i])
                        for a in (-1, 0, 1) for b in (-1, 0, 1)}  # fmt: skip
                if len(near) == 1:  # not at an edge
                    assert pixels[i, row, column] == pytest.approx(0.7 if near == {True} else 0)


def test_outlines_are_the_rim_of_filled_shapes():
    for label in range(6):
        places = [
            shapes.Places(*(np.array([v]) for v in (12.0, 12.0, 8.0, filled, 1.0)))
            for filled in (True, False)
        ]
        whole, rim = (shapes.drawn(np.array([label]), p)[0] for p in places)
        assert (rim <= whole + 1e-12).all()
        assert 0 < rim.sum() < whole.sum() or shapes.NAMES[label] in ("plus", "saltire")


def test_patches_row_by_row_after_an_empty_one():
    pixels = np.arange(2 * 24 * 24, dtype=np.float32).reshape(2, 24, 24)
    values = shapes.patches(pixels).values
    assert values.shape == (2, 37, 16)
    assert (values[:, 0] == 0).all()
    for row in range(6):
        for column in range(6):
            want = pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(2, 16)
            np.testing.assert_array_equal(values[:, 1 + 6 * row + column], want)
    with pytest.raises(ValueError, match=r"\[2, 24, 23\], expected"):
        shapes.patches(pixels[..., :23])


def test_images_lie_inside_and_are_drawn_from_the_seed():
    a, b = shapes.images(300, 3), shapes.images(300, 3)
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert not np.array_equal(a.pixels, shapes.images(300, 4).pixels)
    assert np.bincount(a.labels, minlength=6).min() > 25
    assert abs(a.pixels.mean()) < 0.05  # as often lighter as darker
    assert a.tokens.values.dtype == np.float32


def test_twins_differ_in_their_shape_alone():
    task = shapes.task(8, 1, pair=("plus", "saltire"))
    apart = np.asarray(task.clean.values - task.corrupted.values)
    assert (apart[:, 0] == 0).all()
    # The noise is the same: where neither shape is, nothing differs.
    assert (apart == 0).mean() > 0.4
    assert (task.answers == 2).all()
    assert (task.wrong == 3).all()
    assert task.record()["sha256"] != shapes.task(8, 2, pair=("plus", "saltire")).record()["sha256"]
    assert len(task[:3].clean) == 3
    with pytest.raises(ValueError, match="expected two of square"):
        shapes.task(4, pair=("plus", "star"))
    model = ji.init(ji.Config(
        n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, vocab_size=16, n_ctx=37, n_outputs=6,
        causal=False, positions="learned", norm="layer", act="relu", gated=False,
    ), jax.random.key(0))  # fmt: skip
    assert set(ji.tasks.check(model, task)) >= {"clean_accuracy", "clean_logit_diff"}
