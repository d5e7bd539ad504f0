"""Has this letter been seen before? A head that counts, and an MLP with a threshold."""

from __future__ import annotations

import numpy as np

from jaxinterp.handbuilt.known import Alphabet, Drawn, Known
from jaxinterp.handbuilt.writing import GAIN, SHARP, Layout, Writer, selector, table

LETTERS = "abcdefgh"
ALPHABET = Alphabet(f"^{LETTERS}+-")
_SYMBOLS = len(ALPHABET)


def duplicate_detection() -> Known:
    """Says "+" if the letter here stood before, "-" if it is new. Prompts begin with ^.

    The algorithm: ``a0.h0`` attends alike to ^ and to every position with the current letter
    (its own too), and writes the share of ^ into ``share``: 1/2 for a new letter, at most 1/3
    for one seen before. ``a0.h1`` attends to ^ from everywhere and writes 1 into ``one``. ``m0``
    compares 12 share with the threshold 5 one: the excess goes into ``new``, the shortfall into
    ``seen`` (each up to 1.5 one). The logits of "-" and "+" read these.

    The residual stream: ``token`` (one-hot; the embedding), ``share`` (a0.h0), ``one`` (a0.h1),
    ``new``, ``seen`` (m0), ``average`` (a1.h0: the mean of ``new`` so far, which nobody reads),
    ``copy`` (a1.h1: the token at positions with the same token), ``echo`` (m1: ``new`` and
    ``seen`` again). No positions: it holds for prompts of any length.

    The truth differs on purpose: the threshold is a constant that a head writes. It is the same
    in every run, so that resampling finds nothing on its way (a0.h1 and its three inputs), while
    zeroing any of it spoils the comparison. The same holds for the value of a0.h0, which only
    says where ^ is.

    Clean and corrupted answers differ; half of the clean ones are "+".
    """
    layout = Layout(token=_SYMBOLS, share=1, one=1, new=1, seen=1, average=1, copy=_SYMBOLS, echo=2)
    w = Writer(layout, n_heads=2, d_head=_SYMBOLS, d_mlp=4, vocab_size=_SYMBOLS, n_ctx=64)
    w.embed()
    symbols, flag = np.eye(_SYMBOLS), np.eye(1)
    begin = ALPHABET.id("^")
    same_or_begin = SHARP * symbols
    same_or_begin[:, begin] = SHARP
    w.q(0, 0, "token", same_or_begin)
    w.k(0, 0, "token", symbols)
    w.q(0, 1, "token", SHARP * selector(_SYMBOLS, slice(None)))
    w.k(0, 1, "token", selector(_SYMBOLS, begin))
    for head, writes in enumerate(("share", "one")):
        w.v(0, head, "token", selector(_SYMBOLS, begin))
        w.o(0, head, writes, flag)
    # No 12 / (1 + count) meets a corner (6.5, 5, 3.5), so that gradients are well defined.
    w.unit(0, {("share", 0): 12, ("one", 0): -5}, {("new", 0): 1})
    w.unit(0, {("share", 0): 12, ("one", 0): -6.5}, {("new", 0): -1})
    w.unit(0, {("share", 0): -12, ("one", 0): 5}, {("seen", 0): 1})
    w.unit(0, {("share", 0): -12, ("one", 0): 3.5}, {("seen", 0): -1})
    w.v(1, 0, "new", flag)
    w.o(1, 0, "average", flag)
    w.q(1, 1, "token", SHARP * symbols)
    w.k(1, 1, "token", symbols)
    w.v(1, 1, "token", symbols)
    w.o(1, 1, "copy", symbols)
    w.unit(1, {("new", 0): 1}, {("echo", 0): 1})
    w.unit(1, {("seen", 0): 1}, {("echo", 1): 1})
    w.unembed("new", table((1, _SYMBOLS), {(0, ALPHABET.id("-")): GAIN}))
    w.unembed("seen", table((1, _SYMBOLS), {(0, ALPHABET.id("+")): GAIN}))
    resample = frozenset({"input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->m0", "m0->logits"})
    constant = {
        "input->a0.h0<v>", "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->m0",
    }  # fmt: skip
    return Known(
        name="duplicate_detection",
        model=w.model("duplicate_detection"),
        alphabet=ALPHABET,
        layout=layout,
        lengths=range(4, 65),
        draw=_draw,
        edges={"resample": resample, "zero": resample | constant},
    )


def _draw(rng: np.random.Generator, length: int, number: int) -> Drawn:
    answer, wrong = "-+" if number % 2 else "+-"
    return Drawn(_sequence(rng, length, answer), _sequence(rng, length, wrong), answer, wrong)


def _sequence(rng: np.random.Generator, length: int, answer: str) -> str:
    last = str(rng.choice(list(LETTERS)))
    others = [letter for letter in LETTERS if letter != last]
    body = list(rng.choice(others if answer == "-" else list(LETTERS), length - 2))
    if answer == "+":
        body[int(rng.integers(len(body)))] = last
    return "".join(["^", *body, last])
