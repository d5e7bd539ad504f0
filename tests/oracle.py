"""A slow, obvious transformer in NumPy float64: what the JAX one must agree with.

Written from the papers' definitions with Python loops over layers, positions and heads. One
prompt at a time and only its real tokens, so there is no padding to get wrong.
"""

from __future__ import annotations

import math

import numpy as np


def unedited(site, layer, value):
    """The edit that changes nothing. Layer is None at sites that occur once."""
    return value


def forward(model, ids, types=None, edit=unedited):
    """Logits [P V] (or None) of one prompt, and every site's value.

    ``edit(site, layer, value) -> value`` sees each site's value, without a batch axis, as it is
    made. Layered sites come back stacked, [L ...].
    """
    return _Run(model, edit).forward(list(ids), types)


def batch(model, tokens, edit=None):
    """(logits, sites) of each real prompt of `Tokens`; ``edit(prompt)`` gives its edit."""
    runs = []
    for b in range(len(tokens)):
        keep = np.asarray(tokens.mask)[b]
        types = None if tokens.types is None else np.asarray(tokens.types)[b][keep]
        own = unedited if edit is None else edit(b)
        runs.append(forward(model, np.asarray(tokens.ids)[b][keep], types, own))
    return runs


class _Run:
    def __init__(self, model, edit):
        self.c, self.p, self.edit = model.config, model.params, edit
        self.sites = {}

    def site(self, name, layer, value, restore=lambda value: value):
        value = restore(np.array(self.edit(name, layer, np.array(value)), np.float64))
        if layer is None:
            self.sites[name] = value
        else:
            self.sites.setdefault(name, []).append(value)
        return value

    def forward(self, ids, types):
        c = self.c
        x = self.embed(ids, types)
        for layer in range(c.n_layers):
            x = self.block(layer, x)
        if c.norm_final and c.norm != "none":
            x = self.norm(self.p.ln_final, None, "ln_final", None, x)
        logits = None if c.head == "none" else np.stack([self.unembed(row) for row in x])
        stacked = {k: np.stack(v) if isinstance(v, list) else v for k, v in self.sites.items()}
        return logits, stacked

    def embed(self, ids, types):
        c, p = self.c, self.p.embed
        x = self.site("embed", None, [_f(p.W_E)[i] * c.embed_scale for i in ids])
        if c.positions == "learned":
            x = x + self.site("pos_embed", None, [_f(p.W_pos)[i] for i in range(len(ids))])
        if c.n_token_types:
            types = [0] * len(ids) if types is None else types
            x = x + np.stack([_f(p.W_type)[t] for t in types])
        if c.norm_embed and c.norm != "none":
            x = self.norm(p.norm, None, "ln_embed", None, x)
        return x

    def block(self, l, x):
        c, p = self.c, self.p.blocks
        normed = c.norm != "none"
        x = self.site("resid_pre", l, x)
        attn_out = self.attention(l, x)
        if c.norm_output and normed:
            attn_out = self.norm(p.ln1_post, l, "ln1_post", l, attn_out)
        attn_out = self.site("attn_out", l, attn_out)
        if not c.d_mlp:
            post = self.site("resid_post", l, x + attn_out)
            return self.norm(p.ln1, l, "ln1", l, post) if c.norm_stream and normed else post
        if c.parallel:
            mid = mlp_in = x
        else:
            mid = self.site("resid_mid", l, x + attn_out)
            if c.norm_stream and normed:
                mid = self.norm(p.ln1, l, "ln1", l, mid)
            mlp_in = mid
        mlp_in = self.site("mlp_in", l, mlp_in)
        if c.norm_input and normed:
            mlp_in = self.norm(p.ln2, l, "ln2", l, mlp_in)
        mlp_out = self.mlp(l, mlp_in)
        if c.norm_output and normed:
            mlp_out = self.norm(p.ln2_post, l, "ln2_post", l, mlp_out)
        mlp_out = self.site("mlp_out", l, mlp_out)
        post = mid + mlp_out + (attn_out if c.parallel else 0)
        post = self.site("resid_post", l, post)
        return self.norm(p.ln2, l, "ln2", l, post) if c.norm_stream and normed else post

    def attention(self, l, x):
        c, p = self.c, self.p.blocks.attn
        P, H, G, K = len(x), c.n_heads, c.n_kv_heads, c.d_head
        reads_norm = c.norm_input and c.norm != "none"
        normed = self.norm(self.p.blocks.ln1, l, "ln1", l, x) if reads_norm else x

        def project(name, heads):
            copies = self.site(f"{name}_input", l, np.repeat(x[:, None], heads, 1))
            W, b = _f(getattr(p, f"W_{name.upper()}"))[l], getattr(p, f"b_{name.upper()}")
            out = np.zeros((P, heads, K))
            for t in range(P):
                for h in range(heads):
                    source = normed[t]
                    if (copies[t, h] != x[t]).any():  # this head reads something else
                        source = copies[t, h]
                        if reads_norm:
                            _, source = self.normalized(self.p.blocks.ln1, l, source)
                    out[t, h] = W[h].T @ source + (0 if b is None else _f(b)[l, h])
            return self.site(name, l, out)

        q, k, v = project("q", H), project("k", G), project("v", G)
        q, k = self.qk_norm(l, p.q_norm, q), self.qk_norm(l, p.k_norm, k)
        if c.positions == "rotary":
            kind = c.rotary[c.rotary_kind[l] if c.rotary_kind else 0]
            q = self.site("rot_q", l, rotated(q, kind))
            k = self.site("rot_k", l, rotated(k, kind))

        window = c.windows[l] if c.windows else 0
        seen = np.array(
            [
                [
                    not (c.causal and j > i) and not (window and abs(i - j) >= window)
                    for j in range(P)
                ]
                for i in range(P)
            ]
        )
        scores = np.full((H, P, P), -np.inf)
        for h in range(H):
            for i in range(P):
                for j in np.flatnonzero(seen[i]):
                    score = q[i, h] @ k[j, h // (H // G)] * c.attn_scale
                    scores[h, i, j] = capped(score, c.attn_softcap)
        # No edit opens what a query does not see.
        scores = self.site("attn_scores", l, scores, lambda v: np.where(seen, v, -np.inf))
        pattern = [[softmax(row) for row in head] for head in scores]
        pattern = self.site("pattern", l, pattern, lambda v: np.where(seen, v, 0))
        z = np.zeros((P, H, K))
        for i in range(P):
            for h in range(H):
                for j in range(P):
                    z[i, h] += pattern[h, i, j] * v[j, h // (H // G)]
        z = self.site("z", l, z)
        result = [[z[i, h] @ _f(p.W_O)[l, h] for h in range(H)] for i in range(P)]
        out = self.site("result", l, result).sum(1)
        return out if p.b_O is None else out + _f(p.b_O)[l]

    def qk_norm(self, l, p, x):
        """x [P H K]: RMSNorm of each head's vector, or of all heads' as one vector."""
        if self.c.qk_norm == "none":
            return x
        w, eps = _f(p.w)[l], self.c.norm_eps
        out = np.zeros_like(x)
        for t in range(len(x)):
            if self.c.qk_norm == "joint":
                out[t] = x[t] / np.sqrt((x[t] ** 2).mean() + eps) * w
            else:
                for h in range(x.shape[1]):
                    out[t, h] = x[t, h] / np.sqrt((x[t, h] ** 2).mean() + eps) * w
        return out

    def mlp(self, l, x):
        c, p = self.c, self.p.blocks.mlp

        def read(W, b):
            return [_f(W)[l].T @ row + (0 if b is None else _f(b)[l]) for row in x]

        if c.gated:
            pre = self.site("mlp_pre", l, read(p.W_gate, p.b_gate))
            linear = self.site("mlp_pre_linear", l, read(p.W_in, p.b_in))
        else:
            pre, linear = self.site("mlp_pre", l, read(p.W_in, p.b_in)), 1.0
        post = self.site("mlp_post", l, np.vectorize(ACTIVATIONS[c.act])(pre) * linear)
        out = np.stack([_f(p.W_out)[l].T @ row for row in post])
        return out if p.b_out is None else out + _f(p.b_out)[l]

    def normalized(self, p, index, row, scale=None):
        """(scale, y) of one row; ``index`` is the layer of stacked parameters."""
        w, b = _f(p.w), None if p.b is None else _f(p.b)
        if index is not None:
            w, b = w[index], None if b is None else b[index]
        if self.c.norm == "layer":
            row = row - row.mean()
        if scale is None:
            scale = math.sqrt((row**2).mean() + self.c.norm_eps)
        return scale, row / scale * w + (0 if b is None else b)

    def norm(self, p, index, name, layer, x):
        scale = [[self.normalized(p, index, row)[0]] for row in x]
        scale = self.site(f"{name}_scale", layer, scale)
        rows = [self.normalized(p, index, row, s[0])[1] for row, s in zip(x, scale, strict=True)]
        return self.site(f"{name}_normalized", layer, rows)

    def unembed(self, row):
        c, p = self.c, self.p
        if c.head_transform:
            row = np.vectorize(ACTIVATIONS[c.act])(row @ _f(p.head.W) + _f(p.head.b))
            if p.head.norm is not None:
                _, row = self.normalized(p.head.norm, None, row)
        W_U = _f(p.embed.W_E).T if c.head == "tied" else _f(p.head.W_U)
        logits = row @ W_U + (_f(p.head.b_U) if c.bias_head else 0)
        return capped(logits, c.logit_softcap)


def _f(leaf):
    return np.asarray(leaf, np.float64)


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def softmax(row):
    """Shares of a row of scores; a row that sees nothing has none."""
    open_ = row > np.finfo(np.float32).min
    if not open_.any():
        return np.zeros_like(row)
    e = np.where(open_, np.exp(row - row[open_].max()), 0)
    return e / e.sum()


def rotated(x, rotary):
    """x [P H K], each pair of dimensions a complex number turned by position x frequency."""
    frequencies, length = frequencies_of(rotary)
    out = x.copy()
    half = rotary.dim // 2
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i, frequency in enumerate(frequencies):
                a, b = (2 * i, 2 * i + 1) if rotary.interleaved else (i, i + half)
                turned = complex(x[t, h, a], x[t, h, b]) * np.exp(1j * t * frequency) * length
                out[t, h, a], out[t, h, b] = turned.real, turned.imag
    return out


def frequencies_of(rotary):
    """The angle per position of each pair, and the length by which pairs are multiplied."""
    plain = [rotary.theta ** (-2 * i / rotary.dim) for i in range(rotary.dim // 2)]
    if not rotary.scaling:
        return plain, 1.0
    kind, factor, *rest = rotary.scaling
    if kind == "linear":  # positions are interpolated
        return [f / factor for f in plain], 1.0
    out = []
    if kind == "llama3":  # short wavelengths stay, long ones stretch, a blend between
        low, high, context = rest
        for f in plain:
            wavelength = 2 * math.pi / f
            if wavelength < context / high:
                out.append(f)
            elif wavelength > context / low:
                out.append(f / factor)
            else:
                smooth = (context / wavelength - low) / (high - low)
                out.append((1 - smooth) * f / factor + smooth * f)
        return out, 1.0
    assert kind == "yarn"
    fast, slow, context, length, truncate = rest

    def pair_with(turns):  # theta^(-2 i / dim) * context = 2 pi turns, solved for i
        return rotary.dim / 2 * math.log(context / (2 * math.pi * turns), rotary.theta)

    first, last = pair_with(fast), pair_with(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary.dim - 1)
    for i, f in enumerate(plain):
        ramp = (i - first) / (last - first) if last > first else float(i > first)
        ramp = min(max(ramp, 0.0), 1.0)
        out.append(f * (1 - ramp) + f / factor * ramp)
    return out, length or 0.1 * math.log(factor) + 1


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": math.tanh,
    "identity": lambda x: x,
}


def assert_near(actual, expected, tolerance, what=""):
    """Largest difference relative to the largest expected value; -inf may be any huge number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    finite = np.isfinite(expected)
    assert (actual[~finite] < -1e30).all(), f"{what}: masked entries are not masked"
    actual, expected = actual[finite], expected[finite]
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert error < tolerance, f"{what}: relative error {error:.1e}, expected < {tolerance:.0e}"
