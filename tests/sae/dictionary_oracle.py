"""Slow, obvious dictionaries in NumPy float64: loops over examples and features."""

import numpy as np


def relu(v):
    return np.maximum(v, 0)


def read(c, p, x):
    """What features read of one example, before biases: a list over features (and layers)."""
    if c.kind == "crosscoder":
        return sum(x[layer] @ p.W_enc[layer] for layer in range(c.n_layers))
    if c.kind == "cross_layer":
        return np.stack([x[layer] @ p.W_enc[layer] for layer in range(c.n_layers)])
    return (x - p.b_dec if c.subtract_bias else x) @ p.W_enc


def write(c, p, f, x=None):
    """What one example's features stand for."""
    out = np.array(p.b_dec, float)
    if c.kind == "crosscoder":
        for layer in range(c.n_layers):
            out[layer] += f @ p.W_dec[layer]
    elif c.kind == "cross_layer":
        for source in range(c.n_layers):
            for target in range(source, c.n_layers):
                out[target] += f[source] @ p.W_dec[source, target]
    else:
        out += f @ p.W_dec
    if c.skip:
        out += x @ p.W_skip
    return out


def largest(values, k):
    """Values with all but the k largest set to 0."""
    out, flat = np.zeros_like(values), values.reshape(-1)
    for i in np.argsort(-flat, kind="stable")[:k]:
        out.reshape(-1)[i] = flat[i]
    return out


def codes(c, p, x, k=None):
    """Features and pre-activations of a batch, BatchTopK choosing among all of it."""
    reads = np.stack([read(c, p, row) for row in x])
    pre = reads + p.b_enc
    if c.activation == "relu":
        f = relu(pre)
    elif c.activation == "gated":
        f = np.where(pre > 0, relu(reads * np.exp(p.r_mag) + p.b_mag), 0)
    elif c.activation == "topk":
        f = np.stack([largest(relu(row), k) for row in pre])
    elif c.activation == "batch_topk":
        f = largest(relu(pre), k * len(x))
    else:
        f = np.where(pre > p.threshold, pre, 0)
    return f, pre


def squares(a):
    return sum(float((row**2).sum()) for row in a) / len(a)


def norms(c, p):
    """What a feature writes: its rows' norms, summed over layers."""
    if c.kind == "crosscoder":
        return sum(np.linalg.norm(W, axis=-1) for W in p.W_dec)
    if c.kind == "cross_layer":
        return np.stack([
            sum(np.linalg.norm(p.W_dec[s, t], axis=-1) for t in range(s, c.n_layers))
            for s in range(c.n_layers)
        ])  # fmt: skip
    return np.linalg.norm(p.W_dec, axis=-1)


def level(c, p, x, k, exponent):
    """What brings the penalty of a power to the value of power 1."""
    f, pre = codes(c, p, x, k)
    size = ((relu(pre) if c.activation == "gated" else f) * norms(c, p)).reshape(-1)
    size = size[size > 0]
    return size.sum() / (size**exponent).sum()


def loss(c, p, x, y, *, k=None, sparsity=0.0, exponent=1.0, target_l0=0.0, auxk=0.0, dead=None,
         k_aux=0, smooth=None, frozen=None):  # fmt: skip
    """The whole loss. ``smooth``: JumpReLU's jump as a ramp of that width (its smoothed form, for
    finite differences in the threshold; its height is the threshold's). ``frozen``: the
    parameters of what does not learn: the gates' decoder, the error that is revived from."""
    frozen = p if frozen is None else frozen
    f, pre = codes(c, p, x, k)

    def ramp(threshold):
        return np.clip((pre - threshold) / smooth + 0.5, 0, 1)

    if smooth is not None:
        base, height = np.where(pre > frozen.threshold, pre, 0), frozen.threshold
        f = base + height * (ramp(p.threshold) - ramp(height))
    made = np.stack([write(c, p, row, given) for row, given in zip(f, x, strict=True)])
    total = squares(y - made)
    if c.prefixes:
        total = 0.0
        for end in c.prefixes:
            part = np.array(f)
            part[..., end:] = 0
            total += squares(
                y - np.stack([write(c, p, r, g) for r, g in zip(part, x, strict=True)])
            )
    if c.activation == "gated":
        gates = [write(c, frozen, relu(row), given) for row, given in zip(pre, x, strict=True)]
        total += squares(y - np.stack(gates))
    n = len(x)
    if c.activation == "jumprelu":
        count = (pre > p.threshold).sum() / n
        if smooth is not None:
            count = (pre > frozen.threshold).sum() / n + (
                ramp(p.threshold) - ramp(frozen.threshold)
            ).sum() / n
        total += sparsity * ((count / target_l0 - 1) ** 2 if target_l0 else count)
    elif c.activation in ("relu", "gated"):
        active = relu(pre) if c.activation == "gated" else f
        size = (active * norms(c, p)).reshape(-1)
        total += (
            sparsity
            * level(c, frozen, x, k, exponent)
            * sum(v**exponent for v in size if v > 0)
            / n
        )
    if dead is not None and dead.any():
        g, _ = codes(c, frozen, x, k)
        rest = y - np.stack([write(c, frozen, r, given) for r, given in zip(g, x, strict=True)])
        again = np.stack([largest(np.where(dead, relu(row), 0), k_aux) for row in pre])
        plain = [write(c, p, row, 0 * given) - p.b_dec for row, given in zip(again, x, strict=True)]
        spread = squares(rest - rest.mean(0))
        total += auxk * squares(y - y.mean(0)) * squares(rest - np.stack(plain)) / spread
    return total
