"""A sparse dictionary: parameters, and what they mean as pure functions.

B examples, D width read, O width written, F features, L layers. Four kinds differ in their axes:

    sae, transcoder     W_enc [D F]      W_dec [F O]        x [B D],   f [B F],   y [B O]
    crosscoder          W_enc [L D F]    W_dec [L F O]      x [B L D], f [B F],   y [B L O]
    cross_layer         W_enc [L D F]    W_dec [L L F O]    x [B L D], f [B L F], y [B L O]

In the last, features of layer l (the first axis) write to layers m >= l (the second).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, real_number, whole_number
from jaxinterp.numerics import wide
from jaxinterp.sae.selection import keep_largest

READ = {
    "sae": "...d,df->...f", "transcoder": "...d,df->...f", "crosscoder": "...ld,ldf->...f",
    "cross_layer": "...ld,ldf->...lf",
}  # fmt: skip
WRITE = {
    "sae": "...f,fo->...o", "transcoder": "...f,fo->...o", "crosscoder": "...f,lfo->...lo",
    "cross_layer": "...lf,lmfo->...mo",
}  # fmt: skip
ACTIVATIONS = ("relu", "gated", "topk", "batch_topk", "jumprelu")


@dataclasses.dataclass(frozen=True)
class DictionaryConfig:
    """What a dictionary is, beside its numbers.

    activation: ``"relu"``; ``"gated"`` (Rajamanoharan et al. 2024, arXiv:2404.16014); ``"topk"``
    (Gao et al. 2024, arXiv:2406.04093); ``"batch_topk"`` (Bussmann et al. 2024,
    arXiv:2412.06410); ``"jumprelu"`` (Rajamanoharan et al. 2024, arXiv:2407.14435).
    prefixes: lengths of a Matryoshka's nested codes (Bussmann et al. 2025, arXiv:2503.17547), the
    last is n_features. subtract_bias: whether b_dec is taken off what is read. bandwidth: of
    JumpReLU's straight-through slopes, where the mean norm is sqrt(width), as in training. model,
    site, layers: where it reads; target: the site it writes, where that is another.
    """

    d_in: int
    n_features: int
    kind: str = "sae"
    activation: str = "relu"
    d_out: int = 0
    n_layers: int = 1
    prefixes: tuple[int, ...] = ()
    skip: bool = False
    subtract_bias: bool = False
    bandwidth: float = 0.05
    model: str = ""
    site: str = ""
    target: str = ""
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_out", self.d_out or self.d_in)
        for name in ("prefixes", "layers"):
            given = tuple(whole_number(name, each) for each in getattr(self, name))
            object.__setattr__(self, name, given)
        for name, value, known in (
            ("kind", self.kind, tuple(READ)), ("activation", self.activation, ACTIVATIONS)
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name}={value!r}, expected one of {', '.join(known)}.")
        for name in ("d_in", "n_features", "n_layers", "d_out"):
            whole_number(name, getattr(self, name), 1, MANY)
        real_number("bandwidth", self.bandwidth, above=0)
        if self.kind == "sae" and self.d_out != self.d_in:
            raise ValueError(f"An SAE writes what it reads, not {self.d_out} for {self.d_in}.")
        if self.n_layers > 1 and not self.layered:
            raise ValueError(f"A {self.kind} reads one layer, n_layers={self.n_layers}.")
        if len(self.layers) not in (0, self.n_layers):
            raise ValueError(f"layers={self.layers}, expected {self.n_layers} from 0 on, or none.")
        if self.prefixes and (
            list(self.prefixes) != sorted(set(self.prefixes))
            or self.prefixes[0] < 1 or self.prefixes[-1] != self.n_features
        ):  # fmt: skip
            raise ValueError(
                f"prefixes={self.prefixes}, expected increasing lengths that end with "
                f"n_features={self.n_features}."
            )
        if self.subtract_bias and self.kind != "sae":
            raise ValueError(
                f"A {self.kind} writes another place than it reads: subtract_bias=False."
            )
        if self.skip and self.kind != "transcoder":
            raise ValueError(f"A skip connection is a transcoder's; this is a {self.kind}.")

    @property
    def layered(self) -> bool:
        """Whether it reads several layers, [L D], and writes [L O]."""
        return self.kind in ("crosscoder", "cross_layer")

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """A code's axes over all features of one example: [L F] or [F]."""
        return (-2, -1) if self.kind == "cross_layer" else (-1,)

    @property
    def write_axes(self) -> tuple[int, ...]:
        """W_dec's axes over all that one feature writes."""
        return {"crosscoder": (0, -1), "cross_layer": (1, -1)}.get(self.kind, (-1,))

    @property
    def place(self) -> tuple[str, int]:
        """The site and the layer that an SAE reads and writes.

        Raises ``ValueError`` for other kinds, and where the config does not say.
        """
        if self.kind != "sae" or not self.site or len(self.layers) != 1:
            raise ValueError(
                f"An SAE that reads and writes one site of one layer is needed; this is a "
                f"{self.kind} at {self.site or 'no site'}, layers {self.layers}: the config's "
                "site and layers tell (sae.load takes them too)."
            )
        return self.site, self.layers[0]

    @property
    def read_place(self) -> tuple[str, int]:
        """The site and the layer that features are read from, of an SAE or a transcoder.

        Raises ``ValueError`` for kinds that read several layers, and where the config does not say.
        """
        if self.layered or not self.site or len(self.layers) != 1:
            raise ValueError(
                f"A dictionary that reads one site of one layer is needed; this is a {self.kind} "
                f"at {self.site or 'no site'}, layers {self.layers}: the config's site and layers "
                "tell (sae.load takes them too)."
            )
        return self.site, self.layers[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter there is."""
        D, O, F, L = self.d_in, self.d_out, self.n_features, self.n_layers
        features = (L, F) if self.kind == "cross_layer" else (F,)
        write = {"crosscoder": (L, F, O), "cross_layer": (L, L, F, O)}.get(self.kind, (F, O))
        out = {
            "W_enc": (L, D, F) if self.layered else (D, F),
            "b_enc": features,
            "W_dec": write,
            "b_dec": (L, O) if self.layered else (O,),
        }
        if self.activation == "gated":
            out |= {"r_mag": features, "b_mag": features}
        if self.activation == "jumprelu":
            out["threshold"] = features
        if self.activation == "batch_topk":
            out["threshold"] = ()
        if self.skip:
            out["W_skip"] = (D, O)
        return out


class Parameters(struct.PyTreeNode):
    """Arrays of the shapes in `DictionaryConfig.shapes`; None for what a variant lacks.

    b_enc is the gate's bias where there is a gate. threshold: JumpReLU's, trained; BatchTopK's, a
    running mean of the least activation kept, which stands for the batch afterwards.
    """

    W_enc: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any
    threshold: Any = None
    r_mag: Any = None
    b_mag: Any = None
    W_skip: Any = None


class Code(NamedTuple):
    """features (as the loss and the decoder see them), and pre: what the activation acted on."""

    features: jax.Array
    pre: jax.Array


class Dictionary(struct.PyTreeNode):
    """Parameters with their meaning; k: of TopK and BatchTopK, features kept of an example."""

    params: Parameters
    config: DictionaryConfig = struct.field(pytree_node=False)
    k: Any = None

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [... F] of x [... D] (or [... L D]), each example by itself."""
        return encode(self, x).features

    def decode(self, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """What features stand for [... O]; a skip connection needs ``x`` too."""
        return decode(self, features, x)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction [... O] of (or from) x [... D]."""
        return decode(self, self.encode(x), x)


def encode(d: Dictionary, x: jax.Array, *, together: bool = False) -> Code:
    """The code [... F] of x [... D], or of [... L D] where it reads layers, in float32 or wider.

    together: BatchTopK chooses among all examples, as in training.

    Raises ``ValueError`` for another width, or number of layers.
    """
    p, c = d.params, d.config
    if x.shape[-1] != c.d_in:
        raise ValueError(
            f"This dictionary reads width {c.d_in}{f' ({c.site})' if c.site else ''}, the values "
            f"have width {x.shape[-1]}."
        )
    if c.layered and x.shape[-2:-1] != (c.n_layers,):
        raise ValueError(f"This {c.kind} reads {c.n_layers} layers, the values are {x.shape}.")
    x = wide(x)
    read = jnp.einsum(READ[c.kind], x - p.b_dec if c.subtract_bias else x, p.W_enc)
    pre = read + p.b_enc
    if c.activation == "gated":
        magnitude = jax.nn.relu(read * jnp.exp(wide(p.r_mag)) + p.b_mag)
        return Code(jnp.where(pre > 0, magnitude, 0), pre)
    if c.activation == "jumprelu":
        return Code(jump(pre, p.threshold, c.bandwidth), pre)
    active = jax.nn.relu(pre)
    if c.activation == "topk":
        active = keep_largest(active, d.k, c.feature_axes)
    elif c.activation == "batch_topk" and together:
        examples = active.size // jnp.size(p.b_enc)
        total = jnp.round(jnp.asarray(d.k) * examples)
        active = keep_largest(active, total, tuple(range(active.ndim)))
    elif c.activation == "batch_topk":
        active = jnp.where(active > p.threshold, active, 0)
    return Code(active, pre)


def decode(d: Dictionary, features: jax.Array, x: jax.Array | None = None) -> jax.Array:
    """The sum [... O] of what features write, b_dec, and the skip connection of x if there is one.

    In float32 or wider.

    Raises ``ValueError`` for a skip connection without x.
    """
    p, c = d.params, d.config
    out = jnp.einsum(WRITE[c.kind], wide(features), written(d)) + p.b_dec
    if c.skip:
        if x is None:
            raise ValueError("This transcoder has a skip connection: give x as well.")
        out = out + wide(x) @ p.W_skip
    return out


def written(d: Dictionary) -> jax.Array:
    """W_dec, without what would write to earlier layers."""
    W = d.params.W_dec
    if d.config.kind != "cross_layer":
        return W
    return jnp.where(jnp.triu(jnp.ones(W.shape[:2], bool))[:, :, None, None], W, 0)


def decoder_norms(d: Dictionary) -> jax.Array:
    """How much a feature writes, [F] or [L F]: the norm of its row, summed over layers."""
    norms = jnp.linalg.norm(wide(jnp.asarray(written(d))), axis=-1)
    return norms.sum(d.config.write_axes[0]) if d.config.layered else norms


@jax.custom_jvp
def jump(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """pre where it is above the threshold and 0, else 0; slopes as if through a window (eq. 11)."""
    return jnp.where(pre > threshold, jax.nn.relu(pre), 0)


@jump.defjvp
def _jump_jvp(primals: Any, tangents: Any) -> Any:
    pre, threshold, bandwidth = primals
    along = jnp.where((pre > threshold) & (pre > 0), tangents[0], 0)
    window = _window(pre, threshold, bandwidth)
    return jump(*primals), along - threshold / bandwidth * window * tangents[1]


@jax.custom_jvp
def step(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """1 where pre is above the threshold, else 0; its slope in the threshold: a window (eq. 12)."""
    return jnp.where(pre > threshold, jnp.ones_like(pre), 0)


@step.defjvp
def _step_jvp(primals: Any, tangents: Any) -> Any:
    pre, threshold, bandwidth = primals
    return step(*primals), -_window(pre, threshold, bandwidth) / bandwidth * tangents[1]


def _window(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    return (jnp.abs(pre - threshold) < bandwidth / 2).astype(pre.dtype)


def described(d: Dictionary) -> str:
    """What a result's claim says of a dictionary: its config, and a digest of its numbers."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((d.params, d.k)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    fields = {name: value for name, value in vars(d.config).items() if value}
    return json.dumps({**fields, "digest": digest.hexdigest()[:16]})


def chosen_features(d: Dictionary, features: Any) -> np.ndarray:
    """Their numbers; all by default. Raises ``ValueError`` for those that do not exist."""
    n = d.config.n_features
    chosen = np.arange(n) if features is None else np.asarray(features)
    if (
        chosen.ndim != 1
        or chosen.dtype.kind not in "iu"
        or not ((chosen >= 0) & (chosen < n)).all()
    ):
        raise ValueError(f"features={features}, expected numbers from 0 to {n - 1}.")
    return chosen
