"""Pictures of fronts: points are means over seeds, with their range."""

import numpy as np
import pytest
import xarray as xr

from jaxinterp.report.fronts import front_curves


def history(k, rate, seeds=3, steps=4):
    """As `jaxinterp.sae.train` returns it: members of every k and learning rate, and seeds."""
    rows = [(a, b, s) for b in rate for a in k for s in range(seeds)]
    columns = np.array(rows, float).T
    rng = np.random.default_rng(0)
    shape = (steps, len(rows))
    return xr.Dataset(
        {
            "l0": (("step", "member"), columns[0] + rng.random(shape)),
            "explained": (("step", "member"), rng.random(shape)),
        },
        {
            "k": ("member", columns[0]), "learning_rate": ("member", columns[1]),
            "seed": ("member", columns[2]), "sparsity": ("member", np.zeros(len(rows))),
            "target_l0": ("member", np.zeros(len(rows))), "step": range(steps),
        },
    )  # fmt: skip


@pytest.mark.parametrize(("k", "scale"), [((16, 8), "linear"), ((64, 8), "log")])
def test_points_are_means_over_seeds_with_their_range(tmp_path, k, scale):
    found = history(k, (1e-3, 1e-4))
    axes = front_curves(found, tmp_path / "f.png", title="$k").axes[0]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert axes.get_title("left") == "$k"
    assert axes.get_xscale() == scale
    last = found.isel(step=-1)
    assert [c.get_label() for c in axes.containers] == [
        "learning rate 0.0001", "learning rate 0.001"
    ]  # fmt: skip
    for container, first in zip(axes.containers, (6, 0), strict=True):
        line, _, (across, up) = container.lines
        x, y = (last[name].values[first : first + 6].reshape(2, 3)[::-1] for name in
                ("l0", "explained"))  # fmt: skip
        np.testing.assert_allclose(line.get_xdata(), x.mean(1))
        np.testing.assert_allclose(line.get_ydata(), y.mean(1))
        ends = np.array(across.get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, np.stack([x.min(1), x.max(1)], 1))
        ends = np.array(up.get_segments())[:, :, 1]
        np.testing.assert_allclose(ends, np.stack([y.min(1), y.max(1)], 1))
    assert [t.get_text() for t in axes.texts] == [f"k {k[1]}", f"k {k[0]}"] * 2


def test_other_knobs_are_named_and_one_member_is_enough():
    found = history((0,), (1e-3,), seeds=1)
    found = found.assign_coords(sparsity=("member", [0.5]), target_l0=("member", [20.0]))
    axes = front_curves(found).axes[0]
    assert [t.get_text() for t in axes.texts] == ["λ 0.5, L0* 20"]
    assert axes.get_legend() is None
