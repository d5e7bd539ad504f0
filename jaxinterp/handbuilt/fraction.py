"""The fraction of one symbol among all so far, by uniform attention."""

from __future__ import annotations

import numpy as np

from jaxinterp.handbuilt.known import Alphabet, Drawn, Known
from jaxinterp.handbuilt.writing import GAIN, SHARP, Layout, Writer, selector, table

ALPHABET = Alphabet("xabc<>")
_SYMBOLS = len(ALPHABET)


def token_fraction() -> Known:
    """Are more than half of the symbols so far "x"? ">" if so, "<" if not.

    The algorithm (Tracr's ``frac_prevs``): ``m0`` writes 1 into ``is_x`` where the symbol is x;
    ``a1.h0`` attends to all positions so far alike, so that it writes their mean, the fraction
    of x, into ``answer``. The logit of ">" is 10 times the fraction, that of "<" 10 times the
    rest (its 1 is the unembedding's bias).

    The residual stream: ``token`` (one-hot; the embedding), ``is_x``, ``is_a`` (m0), ``mixture``
    (a0.h0: the mean of all tokens), ``same`` (a0.h1: the token at positions with the same
    token), ``answer`` (a1.h0), ``share_a`` (a1.h1: the fraction of a), ``echo`` (m1: the answer
    again, which nobody reads). No positions: it holds for prompts of any length.

    The truth: uniform attention comes from queries and keys of zero, so no query or key edge
    matters, and nothing on the way is the same in both runs: resampling and zeroing have the
    same true edges.

    Prompts have no tie at the last position; half of the answers are ">".
    """
    layout = Layout(
        token=_SYMBOLS, is_x=1, is_a=1, mixture=_SYMBOLS, same=_SYMBOLS, answer=1, share_a=1, echo=1
    )
    w = Writer(
        layout, n_heads=2, d_head=_SYMBOLS, d_mlp=2, vocab_size=_SYMBOLS, n_ctx=64, bias_head=True
    )
    w.embed()
    symbols, flag = np.eye(_SYMBOLS), np.eye(1)
    w.v(0, 0, "token", symbols)
    w.o(0, 0, "mixture", symbols)
    w.q(0, 1, "token", SHARP * symbols)
    w.k(0, 1, "token", symbols)
    w.v(0, 1, "token", symbols)
    w.o(0, 1, "same", symbols)
    w.unit(0, {("token", ALPHABET.id("x")): 1}, {("is_x", 0): 1})
    w.unit(0, {("token", ALPHABET.id("a")): 1}, {("is_a", 0): 1})
    for head, (reads, writes) in enumerate((("is_x", "answer"), ("is_a", "share_a"))):
        w.v(1, head, reads, selector(1, 0))
        w.o(1, head, writes, flag)
    w.unit(1, {("answer", 0): 1}, {("echo", 0): 1})
    more, less = ALPHABET.id(">"), ALPHABET.id("<")
    w.unembed("answer", table((1, _SYMBOLS), {(0, more): GAIN, (0, less): -GAIN}))
    w.params.head.b_U[less] = GAIN
    edges = frozenset({"input->m0", "m0->a1.h0<v>", "a1.h0->logits"})
    return Known(
        name="token_fraction",
        model=w.model("token_fraction"),
        alphabet=ALPHABET,
        layout=layout,
        lengths=range(3, 65),
        draw=_draw,
        edges={"resample": edges, "zero": edges},
    )


def _draw(rng: np.random.Generator, length: int, number: int) -> Drawn:
    answer, wrong = "<>" if number % 2 else "><"
    return Drawn(_sequence(rng, length, answer), _sequence(rng, length, wrong), answer, wrong)


def _sequence(rng: np.random.Generator, length: int, answer: str) -> str:
    while True:
        text = "".join(rng.choice(list("xabc"), length, p=[1 / 2, 1 / 6, 1 / 6, 1 / 6]))
        balance = 2 * text.count("x") - length
        if (balance > 0) if answer == ">" else (balance < 0):
            return text
