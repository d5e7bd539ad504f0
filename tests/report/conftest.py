"""Sweeps as they come back from `patch`, with an IOI-like pattern and no model behind it."""

import json

import numpy as np
import pytest
import xarray as xr

TOKENS = [
    "<|im_start|>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",",
    " John", " gave", " a", " drink", " to",
]  # fmt: skip
ROLES = ["IO", "S1", "S2", "END"]
HEADS = {
    (18, 3): 0.34, (20, 7): 0.27, (14, 5): 0.16, (21, 1): 0.12, (13, 2): 0.09,
    (24, 6): -0.19, (26, 0): -0.08,
}  # fmt: skip
NAMES = ["Mary", "John", "Tom", "Alice", "James", "Laura", "Kevin", "Sarah"]


def _residual(layer, position):
    """The name's path: in at S2, moved to END around layer 18."""
    late = 1 / (1 + np.exp(-(layer - 18) / 1.6))
    at = {10: 0.97 * (1 - late), 14: 0.98 * late, 12: 0.06 * late * (1 - late), 4: -0.03}
    return at.get(position, 0.0) if position >= 4 else 0.0


def _head(layer, head):
    return HEADS.get((layer, head), 0.01 * np.sin(3 * layer + head))


def make(dims=("layer", "position"), n=32, seed=0, direction="denoise", roles=False, n_layers=30):
    """A plausible result: dims without ``prompt``, then a spread over prompts."""
    rng = np.random.default_rng(seed)
    sizes = {"layer": n_layers, "head": 9, "neuron": 24}
    labels = {d: list(range(sizes.get(d, len(TOKENS)))) for d in dims}
    if roles:
        labels["position"] = ROLES
    where = {"IO": 2, "S1": 4, "S2": 10, "END": 14}
    share = np.zeros([len(v) for v in labels.values()])
    for index in np.ndindex(share.shape):
        at = {d: labels[d][i] for d, i in zip(dims, index, strict=True)}
        position = where.get(at.get("position"), at.get("position"))
        value = _head(at["layer"], at["head"]) if "head" in dims and "layer" in dims else 1.0
        if "head" not in dims and position is not None and "layer" in dims:
            value = _residual(at["layer"], position)
        elif position is not None and position != 14:
            value *= 0.08
        if "source" in dims and at["source"] != 2:
            value *= -0.04 * (at["source"] <= position)
        if "neuron" in dims:
            value = 0.2 * np.exp(-((at["layer"] - 17) ** 2) / 20) * np.sin(5 * at["neuron"]) ** 9
        share[index] = value
    clean, corrupted = rng.normal(3.2, 0.9, n), rng.normal(-2.9, 1.0, n)
    scatter = 1 + 0.18 * rng.normal(size=(*share.shape, n))
    each = share[..., None] * scatter
    each = 1 - each if direction == "noise" else each
    values = corrupted + each * (clean - corrupted)
    pairs = [(NAMES[i % 8], NAMES[(i * 3 + 1) % 8]) for i in range(n)]
    text = "<|im_start|>When {} and {} went to the store, {} gave a drink to"
    coords = {d: (d, v) for d, v in labels.items()} | {
        "prompt": np.arange(n),
        "clean": ("prompt", clean.astype(np.float32)),
        "corrupted": ("prompt", corrupted.astype(np.float32)),
        "clean_text": ("prompt", [text.format(a, b, b) for a, b in pairs]),
        "corrupted_text": ("prompt", [text.format(a, b, a) for a, b in pairs]),
    }
    for axis in ("position", "source"):
        if axis in dims and not roles:
            tokens = [t + "…" * (i in (2, 4, 10)) for i, t in enumerate(TOKENS)]
            coords[f"{axis}_token"] = (axis, tokens)
    record = {
        "model": "smollm2-135m-instruct", "revision": "4e6ca2f1", "family": "llama",
        "config": json.dumps({"n_layers": 30, "d_model": 576, "rotary": [{"base": 1e5}]}),
        "dtype": "float32", "precision": "highest", "site": "z" if "head" in dims else "resid_pre",
        "over": json.dumps(list(dims)), "direction": direction, "intervention": "replace",
        "metric": json.dumps({"name": "logit_diff"}), "n_prompts": n, "seed": seed,
        "task": json.dumps({"name": "ioi", "seed": seed, "corruption": "swap_subject"}),
    }  # fmt: skip
    values = values.astype(np.float32)
    return xr.DataArray(
        values, dims=(*dims, "prompt"), coords=coords, name="logit_diff", attrs=record
    )


@pytest.fixture(scope="session")
def sweep():
    """`make`: a function from dims to a result."""
    return make
