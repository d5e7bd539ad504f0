"""A word written backwards, with attention that looks both ways."""

from __future__ import annotations

import numpy as np

from jaxinterp.handbuilt.known import Alphabet, Drawn, Known
from jaxinterp.handbuilt.writing import GAIN, SHARP, Layout, Writer, selector

LETTERS = "abcdef"
ALPHABET = Alphabet(f"{LETTERS}$.")
N_CTX = 10
_SYMBOLS = len(ALPHABET)


def reversal() -> Known:
    """A word, its end marked by $ and filled up with dots: at its positions, the word reversed.

    "c a f $ . ." is answered by "f a c" at the first three positions.

    The algorithm: at every position, ``a0.h0`` attends to $, wherever it is, and writes its
    position t into ``end``; ``m0`` has a neuron for each pair of an own position p and an end
    t > p, which fires where both are so and writes t - 1 - p into ``target``; ``a1.h0`` attends
    to the position ``target`` and copies its symbol into ``answer``, which the logits read.

    The residual stream: ``token``, ``position`` (one-hot; the embedding), ``end`` (a0.h0),
    ``same`` (a0.h1: the token at positions with the same token), ``target`` (m0), ``answer``
    (a1.h0), ``twin`` (a1.h1: the reversed word again, from ``same``, which nobody reads),
    ``echo`` (m1: the answer again).

    The truth: corrupted words differ in letters and in length, so that all that depends on the
    end's position is found by resampling. What depends on own positions alone is the same in
    both runs and shows only when it is zeroed: the value of a0.h0, the key of a1.h0, the own
    position in m0, and the query of a0.h0, a constant (the sum of the one-hot position).
    """
    layout = Layout(
        token=_SYMBOLS, position=N_CTX, end=N_CTX, target=N_CTX,
        answer=_SYMBOLS, same=_SYMBOLS, twin=_SYMBOLS, echo=len(LETTERS),
    )  # fmt: skip
    w = Writer(
        layout, n_heads=2, d_head=N_CTX, d_mlp=N_CTX * (N_CTX - 1) // 2, vocab_size=_SYMBOLS,
        n_ctx=N_CTX, causal=False, positions="learned", bias_mlp=True,
    )  # fmt: skip
    w.embed()
    symbols, places = np.eye(_SYMBOLS), np.eye(N_CTX)
    w.q(0, 0, "position", SHARP * selector(N_CTX, slice(None)))
    w.k(0, 0, "token", selector(_SYMBOLS, ALPHABET.id("$")))
    w.v(0, 0, "position", places)
    w.o(0, 0, "end", places)
    w.q(0, 1, "token", SHARP * symbols)
    w.k(0, 1, "token", symbols)
    w.v(0, 1, "token", symbols)
    w.o(0, 1, "same", symbols)
    for end in range(N_CTX):
        for own in range(end):
            both = {("position", own): 1.0, ("end", end): 1.0}
            w.unit(0, both, {("target", end - 1 - own): 1}, bias=-1)
    for head, (reads, writes) in enumerate((("token", "answer"), ("same", "twin"))):
        w.q(1, head, "target", SHARP * places)
        w.k(1, head, "position", places)
        w.v(1, head, reads, symbols)
        w.o(1, head, writes, symbols)
    for letter in range(len(LETTERS)):
        w.unit(1, {("answer", letter): 1}, {("echo", letter): 1})
    w.unembed("answer", GAIN * symbols)
    resample = frozenset(
        {"input->a0.h0<k>", "a0.h0->m0", "m0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"}
    )
    positional = {"input->a0.h0<q>", "input->a0.h0<v>", "input->m0", "input->a1.h0<k>"}
    return Known(
        name="reversal",
        model=w.model("reversal"),
        alphabet=ALPHABET,
        layout=layout,
        lengths=range(4, N_CTX + 1),
        draw=_draw,
        edges={"resample": resample, "zero": resample | positional},
    )


def _draw(rng: np.random.Generator, length: int, number: int) -> Drawn:
    while True:
        ends = rng.permutation(np.arange(2, length))[:2]
        word, other = ("".join(rng.choice(list(LETTERS), end)) for end in ends)
        answer = word[::-1]
        if not other[::-1].startswith(answer):
            break
    wrong = "".join(str(rng.choice([s for s in LETTERS if s != letter])) for letter in answer)
    return Drawn(f"{word}$".ljust(length, "."), f"{other}$".ljust(length, "."), answer, wrong)
