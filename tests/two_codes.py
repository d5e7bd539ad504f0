"""A model whose variables lie in known planes of its stream, none of them along an axis."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.handbuilt.writing import Layout, Writer
from jaxinterp.interchange import causal_model, interchange_task

CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) / 2
F = causal_model(
    high=lambda a: a // 2, low=lambda a: a % 2, left=lambda high, low: 2 * high + low,
    right=lambda b: b, output=lambda left, right: 4 * left + right,
)  # fmt: skip
ASK, FIRST = 4, 5  # token ids: 0 to 3 are the inputs; answers begin at FIRST


def two_codes():
    """A model of prompts [a, b, ?] that answers with the pair (a, b), and its planes.

    Head 0 of layer 0 copies a's code, a corner of a square, into the plane ``left``; head 1 that
    of b into ``right``. The logits are linear in both.
    """
    layout = Layout(token=5, position=3, left=2, right=2, spare=12)
    w = Writer(
        layout, n_heads=2, d_head=5, d_mlp=0, vocab_size=FIRST + 16, n_ctx=3, positions="learned"
    )
    w.params.embed.W_E[:5, layout["token"]] = np.eye(5)
    w.params.embed.W_pos[:, layout["position"]] = np.eye(3)
    answers = np.arange(16)
    for head, (plane, code) in enumerate({"left": answers // 4, "right": answers % 4}.items()):
        w.q(0, head, "position", 30 * np.eye(3)[[head] * 3])
        w.k(0, head, "position", np.eye(3))
        w.v(0, head, "token", np.vstack([CORNERS, [[0, 0]]]))
        w.o(0, head, plane, np.eye(2))
        w.unembed(plane, np.hstack([np.zeros((2, FIRST)), 10 * CORNERS[code].T]))
    model, p = w.model("two_codes"), w.params
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    attn = p.blocks.attn
    reads = {k: np.einsum("ed,lhdk->lhek", Q, getattr(attn, k)) for k in ("W_Q", "W_K", "W_V")}
    attn = attn.replace(**reads, W_O=np.einsum("ed,lhkd->lhke", Q, attn.W_O))
    turned = p.replace(
        embed=p.embed.replace(W_E=p.embed.W_E @ Q.T, W_pos=p.embed.W_pos @ Q.T),
        blocks=p.blocks.replace(attn=attn),
        head=p.head.replace(W_U=Q @ p.head.W_U),
    )
    turned = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), turned)
    return model.replace(params=turned), {k: Q[:, at] for k, at in layout.items()}


MODEL, PLANES = two_codes()


def task_of(variable, n=96, **options):
    def sample(rng):
        return {"a": int(rng.integers(4)), "b": int(rng.integers(4))}

    return interchange_task(
        F, sample, variable=variable, n=n, prompt=lambda i: [i["a"], i["b"], ASK],
        answer=lambda output: FIRST + output, outputs=range(16), **options,
    )  # fmt: skip
