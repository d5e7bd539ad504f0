"""Steering: adding a direction, with what it does and what else it does.

h' = h + alpha v. Coefficients are in units of the mean norm of the site's values at that layer, as
norms grow 10 to 100 times with depth. Beside every direction stand random ones of the same length,
prompt by prompt: many prompts go the wrong way, and a large enough push changes anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, numbers, random_seed, whole_number
from jaxinterp.directions import Direction, random_like
from jaxinterp.generation import generate
from jaxinterp.generation.run import ends_of
from jaxinterp.grid_runs import Driver, batch_size, ignore
from jaxinterp.interventions import Shared, add
from jaxinterp.metrics import Metric, check_metric, cross_entropy, evaluate, kl, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import require
from jaxinterp.numerics import wide
from jaxinterp.points import layers_in
from jaxinterp.results import claim
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr


def mean_norms(
    model: Model, tokens: Any, site: str = "resid_post", *, first: bool = False,
    batch: int | None = None,
) -> np.ndarray:  # fmt: skip
    """The mean norm of a site's values by layer, [L], over real tokens.

    first: whether a prompt's first token counts; its norm is often tens of times the others'.

    Raises ``ValueError`` for sites that are not of the stream's shape, and where no token counts.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    if require(model.config, site).axes != ("position", "d_model"):
        raise ValueError(f"{site!r} is not of the stream's shape: steering adds to the stream.")
    size = batch_size(model, tokens, batch, MEMORY)
    total, count = np.zeros(model.config.n_layers), 0.0
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, min(begin + size, len(tokens)))
        norms, n = _norms(model, tokens[rows], site=site, first=first)
        total, count = total + np.asarray(norms, np.float64), count + float(n)
    if not count:
        raise ValueError("Every prompt has one token only: give longer ones, or first=True.")
    return np.asarray(total / count)


@functools.partial(jit, static=("site", "first"))
def _norms(model: Model, tokens: Tokens, *, site: str, first: bool) -> tuple[jax.Array, jax.Array]:
    values = wide(forward(model, tokens, record=(site,)).activations[site])
    counted = tokens.mask if first else tokens.positions > 0
    norms = jnp.where(counted, jnp.linalg.norm(values, axis=-1), 0)
    return norms.sum((1, 2)), counted.sum()


def steer(
    model: Model,
    tokens: Any,
    metric: Metric,
    directions: Mapping[str, Direction],
    *,
    coefficients: Sequence[float] = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0),
    layers: Sequence[int] | None = None,
    positions: Any = None,
    placebos: int = 8,
    norms: np.ndarray | None = None,
    seed: int = 0,
    batch: int | None = None,
    on_done: Callable[[int], None] = ignore,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """The metric under every direction, coefficient and layer, with random placebos, as one sweep.

    directions: by name, at one site; each adds coefficient x norm x unit vector (its own layer's,
    if it has one for each). layers: default all. positions: where (default: everywhere), as an
    intervention takes them. norms [L]: the unit of the coefficients, default `mean_norms` of these
    prompts. placebos: random directions per layer, the same for all coefficients.

    Returns dims (layer, coefficient, direction, prompt), the placebos after the directions as
    "random 0", ...; coordinate ``clean``: the metric without steering; ``norm`` by layer.

    Raises ``ValueError`` for directions of another width or of different sites.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    grid, labels, fields = _grid(
        model, tokens, directions, coefficients, layers, positions, placebos, norms, seed
    )
    driver = Driver.of(model, tokens, (), batch=batch, on_done=on_done)
    n = int(np.prod([len(v) for v in labels.values()]))

    def run(rows: np.ndarray) -> np.ndarray:
        part, own = tokens[rows], of_prompts(metric, rows)
        base = np.asarray(evaluate(own, model, part))
        return np.concatenate([driver.sweep(part, grid(rows), own, None), base[None]])

    found = driver.batches(run, n)
    return _labelled(
        model, found, labels, metric.name,
        {"metric": metric.describe(), "n_prompts": len(tokens), **fields, **dict(record or {})},
    )  # fmt: skip


def side_effects(
    model: Model,
    texts: Any,
    directions: Mapping[str, Direction],
    *,
    measure: str = "kl",
    coefficients: Sequence[float] = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0),
    layers: Sequence[int] | None = None,
    placebos: int = 8,
    norms: np.ndarray | None = None,
    seed: int = 0,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """What steering does to text it has nothing to do with, in the form `steer` returns.

    texts: unrelated prompts [B P] without padding. measure: ``"kl"``, KL(model || steered) in nats
    averaged over positions, or ``"cross_entropy"``, the loss of the text itself. norms: pass those
    of `steer`, so that coefficients mean the same. One text at a time, all its logits in memory.

    Raises ``ValueError`` for another measure, padded texts, and directions as `steer` does.
    """
    texts = as_tokens(texts)
    if measure not in ("kl", "cross_entropy"):
        raise ValueError(f"measure={measure!r}, expected 'kl' or 'cross_entropy'.")
    if not np.asarray(texts.mask).all():
        raise ValueError("Unrelated texts must not be padded: cut them to one length.")
    grid, labels, fields = _grid(
        model, texts, directions, coefficients, layers, None, placebos, norms, seed
    )
    driver = Driver.of(model, texts, (), batch=1, on_done=on_done)

    def run(rows: np.ndarray) -> np.ndarray:
        part = texts[rows]
        reference = forward(model, part).logits
        own = kl(reference, position="all") if measure == "kl" else cross_entropy()
        base = np.asarray(evaluate(own, model, part))
        return np.concatenate([driver.sweep(part, grid(rows), own, None), base[None]])

    found = driver.batches(run, int(np.prod([len(v) for v in labels.values()])))
    return _labelled(
        model, found, labels, measure, {"n_texts": len(texts), "unit": "nats", **fields}
    )


def continuations(
    model: Model,
    tokens: Any,
    direction: Direction,
    layer: int,
    coefficients: Sequence[float],
    n_new: int,
    *,
    norms: np.ndarray | None = None,
    apply: Any = "both",
    tokenizer: Any = None,
    **sampling: Any,
) -> xr.Dataset:
    """Steered continuations and how fluent the model itself finds them.

    One generation per coefficient (the same program). apply, sampling: as in `generate`; with a
    tokenizer its ``ends`` stop a text unless ``stop`` is given. norms: the unit of the
    coefficients, default `mean_norms` of these prompts.

    Returns dims (coefficient, prompt, new): ``token``, -1 after a text's end; and (coefficient,
    prompt): ``loss``, the mean loss in nats of the new tokens under the model without steering
    (the log of their perplexity), with a tokenizer ``text``.

    Raises ``ValueError`` for a layer that does not exist, and as `generate` does.
    """
    import xarray as xr

    tokens, n_new = as_tokens(tokens), whole_number("n_new", n_new, 1, MANY)
    numbers("coefficients", coefficients)
    norms = mean_norms(model, tokens, direction.site) if norms is None else np.asarray(norms)
    layer = whole_number("layer", layer, 0, len(norms) - 1)
    unit = direction.unit.vector if direction.vector.ndim == 1 else direction.unit.vector[layer]
    sampling = {"stop": ends_of(model, tokenizer), **sampling}
    new, losses, texts = [], [], []
    for coefficient in coefficients:
        edit = add(
            direction.site, (coefficient * norms[layer] * unit).astype(np.float32), layer=layer
        )
        made = generate(model, tokens, n_new, interventions=edit, apply=apply, **sampling)
        new.append(made.kept())
        texts.append([] if tokenizer is None else made.texts(tokenizer))
        losses.append(np.asarray(_loss_of_new(model, made.tokens, n_new=n_new)))
    data: dict[str, Any] = {
        "token": (("coefficient", "prompt", "new"), np.stack(new)),
        "loss": (("coefficient", "prompt"), np.stack(losses)),
    }
    if tokenizer is not None:
        data["text"] = (("coefficient", "prompt"), np.asarray(texts, object))
    coords = {"coefficient": list(coefficients), "prompt": np.arange(len(tokens))}
    attrs = claim(
        model, site=direction.site, layer=layer, intervention="add", direction=direction.source
    )
    return xr.Dataset(data, coords, attrs)


@functools.partial(jit, static=("n_new",))
def _loss_of_new(model: Model, tokens: Tokens, *, n_new: int) -> jax.Array:
    """Mean loss [B] of the last ``n_new`` columns, as far as they are real."""
    logits = forward(model, tokens).logits
    assert logits is not None
    log_p = jax.nn.log_softmax(wide(logits[:, -n_new - 1 : -1]))
    loss = -jnp.take_along_axis(log_p, tokens.ids[:, -n_new:, None], 2)[..., 0]
    real = tokens.mask[:, -n_new:]
    return jnp.where(real, loss, 0).sum(1) / real.sum(1)


def _grid(
    model: Model, tokens: Tokens, directions: Mapping[str, Direction],
    coefficients: Sequence[float], layers: Sequence[int] | None, positions: Any, placebos: int,
    norms: np.ndarray | None, seed: int,
) -> tuple[Callable[[np.ndarray], Any], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The grid for some prompts, the labels of its dims, and what the claim says."""
    c = model.config
    placebos, seed = whole_number("placebos", placebos, 0, MANY), random_seed(seed)
    numbers("coefficients", coefficients)
    if not directions:
        raise ValueError("There is no direction: give one at least, by name.")
    sites = {d.site for d in directions.values()}
    if len(sites) != 1:
        raise ValueError(f"The directions are at {sorted(sites)}: one grid has one site.")
    site = sites.pop()
    norms = mean_norms(model, tokens, site) if norms is None else np.asarray(norms, float)
    if norms.shape != (c.n_layers,) or not np.isfinite(norms).all():
        raise ValueError(f"norms have shape {list(norms.shape)}, expected finite [{c.n_layers}].")
    chosen = layers_in(c.n_layers, layers)
    for name, d in directions.items():
        if d.vector.shape not in ((c.d_model,), (c.n_layers, c.d_model)):
            raise ValueError(
                f"Direction {name!r} is {list(d.vector.shape)}, expected [{c.d_model}] or "
                f"[{c.n_layers}, {c.d_model}]."
            )
    units = [np.broadcast_to(d.unit.vector, (c.n_layers, c.d_model)) for d in directions.values()]
    like = Direction(units[0], site)
    units += [d.unit.vector for d in random_like(like, placebos, seed)]
    unit = np.stack(units)[:, chosen]  # [V L D]
    value = np.einsum("vld,c,l->lcvd", unit, np.asarray(coefficients, float), norms[chosen])
    labels = {
        "layer": chosen, "coefficient": list(coefficients),
        "direction": [*directions, *(f"random {i}" for i in range(placebos))],
    }  # fmt: skip
    each = len(coefficients) * len(units)
    flat = value.reshape(-1, c.d_model).astype(np.float32)

    def grid(rows: np.ndarray) -> Any:
        where: dict[str, Any] = {"layer": np.repeat(np.asarray(chosen), each)}
        if positions is not None:
            at = np.asarray(positions)
            where["position"] = Shared(at[rows] if at.ndim and len(at) == len(tokens) else at)
        return add(site, flat, **where)

    fields = {
        "site": site, "intervention": "add", "seed": seed, "norms": norms.tolist(),
        "directions": {name: d.source for name, d in directions.items()},
        "unit_of_coefficients": "mean norm of the site at that layer",
    }  # fmt: skip
    return grid, labels, fields


def _labelled(
    model: Model, found: np.ndarray, labels: dict[str, Any], name: str, fields: Mapping[str, Any]
) -> xr.DataArray:  # fmt: skip
    import xarray as xr

    shape = [len(v) for v in labels.values()]
    coords = labels | {
        "prompt": np.arange(found.shape[-1]), "clean": ("prompt", found[-1]),
        "norm": ("layer", [fields["norms"][i] for i in labels["layer"]]),
    }  # fmt: skip
    values = found[:-1].reshape(*shape, -1)
    return xr.DataArray(values, coords, (*labels, "prompt"), name, claim(model, **fields))
