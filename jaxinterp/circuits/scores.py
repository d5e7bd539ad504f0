"""Edge scores from gradients: estimates of what `patch_edges` computes exactly.

An edge's score is the difference of what its sender writes in the two runs, times the gradient of
the metric at its receiver's input. Where the gradient is taken is what tells the methods apart:

    eap                  at the run that is patched (Syed et al. 2023, arXiv:2310.10348)
    eap-ig-inputs        averaged over embeddings on the line between the two runs
                         (Hanna et al. 2024, arXiv:2403.17806)
    eap-ig-activations   averaged over the sender's own output on that line, the attention or MLP of
                         one layer at a time (Mueller et al. 2025, arXiv:2504.13151)
    ig-edges             averaged over all edges exchanged by the same fraction; the scores then add
                         up to the whole effect (completeness; Sundararajan et al. 2017)

Integrals are taken at the midpoints of ``steps`` equal parts. The code of the authors of
eap-ig-inputs takes the ends nearer to the corrupted run (rule="left"): few steps then give other
scores, many the same. Their code for eap-ig-activations multiplies what a sender writes by the
average of the gradients on the lines of all sublayers; here it is its own line's, as the definition
says, so that the two differ whatever the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, one_of, whole_number
from jaxinterp.circuits.circuit import Circuit, graph_of
from jaxinterp.circuits.edges import chosen_edges
from jaxinterp.circuits.masked import Held, added, measure, walk
from jaxinterp.circuits.runs import Direction, Part, edge_result, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.metrics import Metric
from jaxinterp.model import Model, Tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.parts import einsum
from jaxinterp.numerics import wide, wide_dtype

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["eap", "eap-ig-inputs", "eap-ig-activations", "ig-edges"]
Rule = Literal["midpoint", "left"]


def attribute_edges(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    edges: Circuit | Iterable[str] | None = None,
    method: Method = "eap",
    steps: int = 5,
    rule: Rule = "midpoint",
    direction: Direction = "noise",
    alternative: Any = "run",
    tokenizer: Any = None,
    record: dict[str, Any] | None = None,
    batch: int | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """The metric that edge patching is predicted to give: labelled as `patch_edges`.

    The prediction is the unpatched metric plus the edge's score, so that subtracting the
    baseline gives the scores. Arguments as in `patch_edges`. One forward and one backward pass
    per batch (times ``steps``; times ``1 + 2 L`` too for eap-ig-activations). on_done: called with
    the number of prompts done.

    rule: where gradients are taken in each of ``steps`` equal parts of the line between the runs:
    at its "midpoint", or at its "left" end, the one nearer to the corrupted run, which gives the
    eap-ig-inputs of the authors' code (github.com/hannamw/EAP-IG). With few steps the two differ.
    Their eap-ig-activations takes the gradients of all sublayers' lines together where the
    definition, followed here, takes those of the sender's own: no rule gives it.

    Raises ``ValueError`` as `patch_edges` does, and where the gradient vanishes although the two
    runs differ: that of a divergence from the clean run (KL, squared error) is zero there.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}, expected one of {', '.join(get_args(Method))}.")
    steps, rule = whole_number("steps", steps, 1, MANY), one_of("rule", rule, get_args(Rule))
    points = _points(steps, rule, direction)
    chosen = chosen_edges(graph_of(model), edges)
    runs = prepare(model, clean, corrupted, metric, direction, alternative, batch, on_done=on_done)

    def run(part: Part) -> np.ndarray:
        scores = np.asarray(_SCORES[method](part, points))
        _check_gradient(scores, part)
        return part.baselines[0] + scores[chosen]

    values, ends = runs.batches(run, 1)
    names = Circuit(runs.graph, chosen).names
    fields = {"intervention": "edge", "method": method, **(record or {})}
    if method != "eap":
        fields |= {"steps": steps, "rule": rule}
    return edge_result(runs, names, values, ends, tokenizer, **fields)


def _check_gradient(scores: np.ndarray, part: Part) -> None:
    effect = np.abs(part.baselines[0] - part.baselines[1])
    if (np.abs(scores).max(axis=(0, 1)) < 1e-4 * effect).all():  # zero but for rounding
        raise ValueError(
            f"The gradient of {part.metric.name} is zero at the run to be patched, although the "
            "two runs differ: a divergence from that very run is smallest there, so its gradient "
            "says nothing. Attribute a logit difference, or integrate (method='ig-edges')."
        )


@jit
def gradients(
    model: Model, tokens: Tokens, metric: Metric, held: Held | None = None,
    mask: jax.Array | None = None, other: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The gradient of each prompt's metric at every receiver's input [R B P D]; what senders wrote.

    held: senders that are held; mask and other: edges that are exchanged, as in `walk`.
    """
    shape = jax.eval_shape(walk, model, tokens)
    stream = shape.stream
    zero = jnp.zeros((graph_of(model).n_receivers, *stream.shape), wide_dtype(stream))

    def total(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        run = walk(model, tokens, mask, other, shift, held)
        return measure(model, tokens, metric, run.stream).sum(), run.written

    return jax.grad(total, has_aux=True)(zero)


@jit
def _product(model: Model, gradient: jax.Array, gap: jax.Array) -> jax.Array:
    """[R S B]; only places that are edges mean something."""
    return einsum(model.config, "rbpd,sbpd->rsb", gradient, gap)


def _points(steps: int, rule: Rule, direction: Direction) -> np.ndarray:
    """How far from the patched run to the other one the gradients are taken, [steps]."""
    begin = np.arange(steps, dtype=np.float32) / steps
    if rule == "midpoint":
        return begin + np.float32(0.5) / steps
    return begin if direction == "denoise" else 1 - begin  # counted from the corrupted run


def _eap(part: Part, points: np.ndarray) -> jax.Array:
    gradient, _ = gradients(part.model, part.tokens, part.metric)
    return _edges_only(part, _product(part.model, gradient, part.gap))


def _eap_ig_inputs(part: Part, points: np.ndarray) -> jax.Array:
    where = np.zeros(part.graph.n_senders, bool)
    where[0] = True
    total = jnp.zeros(())
    for share in points:
        total = total + _held_at(part, where, share) / len(points)
    return _edges_only(part, _product(part.model, total, part.gap))


def _held_at(part: Part, where: np.ndarray, share: float) -> jax.Array:
    """The gradients with some senders part of the way to the other run."""
    held = Held(jnp.asarray(where), added(part.run.written, share * part.gap))
    return gradients(part.model, part.tokens, part.metric, held)[0]


def _eap_ig_activations(part: Part, points: np.ndarray) -> jax.Array:
    graph = part.graph
    out = jnp.zeros((*graph.exists.shape, len(part.tokens)), part.gap.dtype)
    layers = np.array([graph.layer_of(s) for s in range(graph.n_senders)])
    is_mlp = np.array([name.startswith("m") for name in graph.senders])
    for layer in range(-1, graph.config.n_layers):
        for mlp in {False} if layer < 0 or graph.config.attention_only else {False, True}:
            where = (layers == layer) & (is_mlp == mlp)
            total = jnp.zeros(())
            for share in points:
                total = total + _held_at(part, where, share) / len(points)
            scores = _product(part.model, total, part.gap)
            out = jnp.where(jnp.asarray(where)[:, None], scores, out)
    return _edges_only(part, out)


def _ig_edges(part: Part, points: np.ndarray) -> jax.Array:
    total: Any = 0.0
    for share in points:
        mask = jnp.asarray(part.graph.exists, part.gap.dtype) * share
        gradient, written = gradients(part.model, part.tokens, part.metric, None, mask, part.other)
        gap = wide(part.other) - wide(written)
        total = total + _product(part.model, gradient, gap) / len(points)
    return _edges_only(part, total)


def _edges_only(part: Part, scores: jax.Array) -> jax.Array:
    return jnp.where(jnp.asarray(part.graph.exists)[:, :, None], scores, 0)


_SCORES: dict[str, Callable[[Part, np.ndarray], jax.Array]] = {
    "eap": _eap,
    "eap-ig-inputs": _eap_ig_inputs,
    "eap-ig-activations": _eap_ig_activations,
    "ig-edges": _ig_edges,
}
