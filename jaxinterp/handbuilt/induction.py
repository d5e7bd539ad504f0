"""A previous-token head that feeds an induction head, without or with norms and grouped heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxinterp.handbuilt.known import Alphabet, Drawn, Known
from jaxinterp.handbuilt.writing import GAIN, SHARP, Layout, Writer, table

ALPHABET = Alphabet("^abcdefgh")
N_CTX, HEADS = 16, 4
_SYMBOLS = len(ALPHABET)


def previous_token_induction(
    norm: Literal["none", "rms", "layer"] = "none", grouped: bool = False
) -> Known:
    """Two layers of attention that continue a prompt as it went on before.

    "^ c a f b a c h a": the last letter stood before, once; the answer is what followed it (f).

    The algorithm (Olsson et al. 2022, arXiv:2209.11895): ``a0.h0`` copies each position's
    previous symbol into ``previous``; ``a1.h0`` looks for the position whose previous symbol is
    the current one, and copies that position's own symbol into ``answer``.

    The residual stream: ``token``, ``position`` (one-hot; the embedding), ``previous`` (a0.h0),
    ``own``, ``second``, ``first`` (a0.h1 to a0.h3: the symbol here, two back, and ^), ``answer``
    (a1.h0), ``twin`` (a1.h1: the same answer, which nobody reads), ``copy`` (a1.h2: ``own``
    again), ``start`` (a1.h3: ``own`` at the position that ``first`` points to). The logits read
    ``answer``.

    The truth: a0.h0 finds its place by position, and positions are the same in both runs. So its
    query and key edges matter when they are zeroed and not when they are resampled.

    norm: norms of what a layer reads and of the last stream. Every variable is one-hot with one
    entry of 1, in clean and corrupted runs alike, so a norm always divides by the same number
    and the gains undo it. Hence resampling has the same true edges as without norms. Zeroing a
    value makes the stream shorter and all else that is read from it larger: every edge into a
    value or into the logits is true, and every edge that, by spreading a head's attention,
    shortens what it writes. Other query and key edges are not: sharp attention is not changed by
    scaling its scores.

    grouped: 2 key/value heads for the 4 heads: 0 and 1 share theirs, and 2 and 3.

    In the prompts, the last letters of both twins stand once in the body of each.

    Raises ``ValueError`` for another norm.
    """
    if norm not in ("none", "rms", "layer"):
        raise ValueError(f"norm={norm!r}, expected 'none', 'rms' or 'layer'.")
    kv = (0, 0, 1, 1) if grouped else (0, 1, 2, 3)
    first = ("token", "previous", "own", "second", "first")
    last = ("answer", "twin", "copy", "start")
    layout = Layout(position=N_CTX, **dict.fromkeys((*first, *last), _SYMBOLS))
    w = Writer(
        layout, n_heads=HEADS, n_kv_heads=max(kv) + 1, d_head=max(N_CTX, _SYMBOLS),
        vocab_size=_SYMBOLS, n_ctx=N_CTX, positions="learned", norm=norm,
    )  # fmt: skip
    w.embed()
    symbols, places = np.eye(_SYMBOLS), np.eye(N_CTX)
    for head, (back, writes) in enumerate(zip((1, 0, 2, N_CTX), first[1:], strict=True)):
        w.q(0, head, "position", _look_back(back))
        w.k(0, kv[head], "position", places)
        w.v(0, kv[head], "token", symbols)
        w.o(0, head, writes, symbols)
    for head, writes in enumerate(last):
        w.k(1, kv[head], *(("previous", symbols) if head < 2 else ("position", places)))
        w.v(1, kv[head], "token" if head < 2 else "own", symbols)
        w.o(1, head, writes, symbols)
    w.q(1, 0, "token", SHARP * symbols)
    w.q(1, 1, "token", SHARP * symbols)
    w.q(1, 2, "position", _look_back(0))
    w.q(1, 3, "first", table((_SYMBOLS, N_CTX), {(ALPHABET.id("^"), 0): SHARP}))
    w.unembed("answer", GAIN * symbols)
    if norm != "none":
        _undo_norms(w)
    variant = [norm] * (norm != "none") + ["grouped"] * grouped
    name = "-".join(["previous_token_induction", *variant])
    return Known(
        name=name,
        model=w.model(name),
        alphabet=ALPHABET,
        layout=layout,
        lengths=range(4, N_CTX + 1),
        draw=_draw,
        edges=_edges(norm != "none", kv),
    )


def _look_back(steps: int) -> np.ndarray:
    """Positions to the query for the one ``steps`` earlier; before the first, for the first."""
    entries = {(p, max(p - steps, 0)): SHARP for p in range(N_CTX)}
    return table((N_CTX, N_CTX), entries)


def _undo_norms(w: Writer) -> None:
    """Gains and shifts that give back the stream as it is where all one-hots are whole."""
    config, params = w.config, w.params
    ones = 2, 2 + HEADS, 2 + 2 * HEADS  # entries of 1 before layers 0 and 1 and the logits

    def gain_and_shift(count: int) -> tuple[float, float]:
        mean = count / config.d_model
        shift = mean if config.norm == "layer" else 0.0
        return float(np.sqrt(mean - shift**2 + config.norm_eps)), shift

    norms = [(params.blocks.ln1, 0), (params.blocks.ln1, 1), (params.ln_final, slice(None))]
    for (norm, at), count in zip(norms, ones, strict=True):
        gain, shift = gain_and_shift(count)
        norm.w[at] = gain
        if norm.b is not None:
            norm.b[at] = shift
    if params.blocks.ln1.b is not None:  # so that zeroing what a query reads gives a zero query
        params.blocks.ln1.b[0, w.layout["position"]] = 0


def _edges(norm: bool, kv: Sequence[int]) -> dict[str, frozenset[str]]:
    resample = {
        "input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<q>", "input->a1.h0<v>",
        "a1.h0->logits",
    }  # fmt: skip
    zero = resample | {"input->a0.h0<q>", "input->a0.h0<k>"}
    if norm:
        before = ("input", *(f"a0.h{head}" for head in range(HEADS)))
        zero |= {f"{sender}->logits" for sender in before}
        zero |= {f"{sender}->a1.h{group}<v>" for sender in before for group in kv}
        for head, group in enumerate(kv):
            zero |= {f"input->a0.h{head}<q>", f"input->a0.h{group}<k>", f"input->a0.h{group}<v>"}
            zero |= {f"{'a0.h0' if head < 2 else 'input'}->a1.h{group}<k>"}
            zero |= {f"{'a0.h3' if head == 3 else 'input'}->a1.h{head}<q>"}
            zero |= {f"a1.h{head}->logits"}
    return {"resample": frozenset(resample), "zero": frozenset(zero)}


def _draw(rng: np.random.Generator, length: int, number: int) -> Drawn:
    letters = [s for s in ALPHABET.symbols if s != "^"]
    while True:
        one, other, *rest = rng.permutation(letters)
        clean = _sequence(rng, length, one, other, rest)
        corrupted = _sequence(rng, length, other, one, rest)
        answer, wrong = clean[clean.index(one) + 1], corrupted[corrupted.index(other) + 1]
        if answer != wrong:
            return Drawn(clean, corrupted, answer, wrong)


def _sequence(
    rng: np.random.Generator, length: int, last: str, other: str, rest: Sequence[str]
) -> str:
    """^, a body with ``last`` (not at its end) and ``other`` in it once, and ``last`` again."""
    body = list(rng.choice(rest, length - 2))
    at = int(rng.integers(len(body) - 1))
    body[at] = last
    body[int(rng.choice([i for i in range(len(body)) if i != at]))] = other
    return "".join(["^", *body, last])
