"""AtP* (Kramar et al. 2024, arXiv:2403.00745): two repairs of attribution patching.

*QK fix*: where attention is saturated, the gradient at a query or key says nothing of what a
patch does. The softmax is recomputed for the patched value, and the pattern's change is dotted
with the metric's gradient at the pattern.

*GradDrop*: a direct and an indirect effect may cancel in the gradient at one point. The
attribution is taken once per layer with the gradient through that layer's contribution to the
stream dropped, and the absolute values are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.attribution.gradients import Pair, slopes_of
from jaxinterp.interventions import add, replace
from jaxinterp.metrics import evaluate
from jaxinterp.model import At, Model, forward
from jaxinterp.model.sites import absent
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.sweep import observe

QUERIES, KEYS = ("q", "rot_q"), ("k", "rot_k")
STREAM = (
    "embed", "pos_embed", "ln_embed_scale", "ln_embed_normalized", "resid_pre", "resid_mid",
    "resid_post", "ln_final_scale", "ln_final_normalized",
)  # fmt: skip
TOGETHER = 8  # layers dropped at once: their backward passes share one forward pass


def attribution(pair: Pair, fix: bool, drop: bool) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B] and the attribution of each cell [*over, B].

    With ``drop`` the size is GradDrop's and the sign that of the attribution without it.
    """
    slopes = _fixed(pair) if fix and pair.site in QUERIES + KEYS else pair.slopes
    metric, plain = slopes()
    plain = pair.cells(plain)
    if not drop:
        return metric, plain
    n_layers = pair.model.config.n_layers
    written = tuple(s for s in ("attn_out", "mlp_out") if s not in absent(pair.model.config))

    def dropped(layer: jax.Array) -> jax.Array:
        return jnp.abs(pair.cells(slopes(after=(Drop(layer, written),))[1]))

    sizes = jax.lax.map(dropped, jnp.arange(n_layers), batch_size=min(TOGETHER, n_layers))
    # Dropping its own layer always silences a node inside it: that one does not count.
    size = sizes.sum(0) / (n_layers if pair.site in STREAM else n_layers - 1)
    return metric, jnp.where(plain < 0, -size, size)


def check(model: Model, site: str, over: tuple[str, ...], fix: bool, drop: bool) -> None:
    """Refuse what the repairs do not cover. Raises ``ValueError``."""
    c = model.config
    if fix and c.qk_norm == "joint" and site in ("q", "k") and "head" in over:
        raise ValueError(
            f"All heads of a {c.family} model share one norm of {site}, so a patched head "
            f"changes the others' attention: the QK fix needs site='rot_{site}', after the norm."
        )
    if drop and c.n_layers < 2 and site not in STREAM:
        raise ValueError("GradDrop compares layers, and this model has 1: use method='atp_qk'.")


class Drop(struct.PyTreeNode):
    """No gradient through one layer's contribution to the stream; values stay."""

    layer: jax.Array
    sites: tuple[str, ...] = struct.field(pytree_node=False)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        return _gate(value, at.layer != self.layer)


@jax.custom_vjp
def _gate(value: jax.Array, is_open: jax.Array) -> jax.Array:
    """The value; its gradient only where open. The gate is met on the way back alone, so that
    layers dropped side by side (vmap) share the forward pass."""
    return value


def _gate_forward(value: jax.Array, is_open: jax.Array) -> tuple[jax.Array, jax.Array]:
    return value, is_open


def _gate_backward(is_open: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(is_open, gradient, 0), None


_gate.defvjp(_gate_forward, _gate_backward)


def _fixed(pair: Pair) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`Pair.slopes` with the softmax recomputed: of queries, or of keys."""
    model, base, site = pair.model, pair.base, pair.site
    run, recorded = observe(model, base, pair.metric, record=("attn_scores", "pattern"))
    # Each layer reads the base run's stream and the donor's queries (or keys).
    frozen = replace("resid_pre", run.resid_pre)
    patched = forward(
        model, base, (frozen, replace(site, pair.values)), record=("attn_scores", "pattern")
    ).activations
    change = wide(patched["pattern"]) - wide(recorded["pattern"])  # L B H Q S

    def effects(gradient: jax.Array) -> jax.Array:
        if site in QUERIES:  # a query's row is its own
            return jnp.moveaxis((gradient * change).sum(-1), 2, 3)[..., None]
        if "position" in pair.over:
            scores, others = recorded["attn_scores"], patched["attn_scores"]
            effect = key_effects(scores, others, gradient).sum(-2)  # L B H S
        else:  # all keys of a head at once
            effect = (gradient * change).sum((-1, -2))[..., None]
        groups = model.config.n_kv_heads
        effect = effect.reshape(*effect.shape[:2], groups, -1, effect.shape[-1]).sum(3)
        return jnp.moveaxis(effect, 2, 3)[..., None]  # L B S G 1

    def slopes(after: tuple = ()) -> tuple[jax.Array, jax.Array]:
        def measure(amount: jax.Array) -> jax.Array:
            return evaluate(pair.metric, model, base, (add("pattern", amount), *after))

        metric, gradient = slopes_of(measure, jnp.zeros_like(change))
        return metric, effects(gradient)

    return slopes


def key_effects(scores: jax.Array, patched: jax.Array, gradient: jax.Array) -> jax.Array:
    """What patching each key alone does to each query: gradient . change of the row, [... Q S].

    scores, patched: the scores [... Q S] with the old and with the new keys. Key s alone moves
    its own share p to p' and scales the others by (1 - p') / (1 - p), so the change is
    (p' - p) (gradient_s - mean of the others' gradients, weighted by their shares): all keys in
    linear time (the paper's appendix). Log-odds against the others are kept exact by running
    sums from both ends, so that a share that rounds to 1 is no trouble.
    """
    scores, patched, gradient = wide(scores), wide(patched), wide(gradient)
    nothing = jnp.finfo(wide_dtype(scores)).min

    def merge(a: Any, b: Any) -> Any:
        """Two sets of keys: the log of their weight and their mean gradient."""
        weight = jnp.logaddexp(a[0], b[0])
        return weight, a[1] * jnp.exp(a[0] - weight) + b[1] * jnp.exp(b[0] - weight)

    def without(reverse: bool) -> Any:
        """The keys on one side of each."""
        sums = jax.lax.associative_scan(
            merge, (scores, gradient), reverse=reverse, axis=scores.ndim - 1
        )
        pad = [(0, 0)] * (scores.ndim - 1)
        pad, kept = ([*pad, (0, 1)], slice(1, None)) if reverse else ([*pad, (1, 0)], slice(-1))
        fill = (nothing, 0)
        return tuple(
            jnp.pad(s[..., kept], pad, constant_values=f) for s, f in zip(sums, fill, strict=True)
        )

    weight, mean = merge(without(False), without(True))
    odds, shift = scores - weight, patched - scores
    low, high = odds + jnp.minimum(shift, 0), odds + jnp.maximum(shift, 0)
    size = -jnp.expm1(-jnp.abs(shift)) * jax.nn.sigmoid(high) * jax.nn.sigmoid(-low)
    return jnp.sign(shift) * size * (gradient - mean)
