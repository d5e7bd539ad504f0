"""A head and its backup, which does the same work only while the first does not."""

from __future__ import annotations

import numpy as np

from jaxinterp.handbuilt.known import Alphabet, Drawn, Known
from jaxinterp.handbuilt.writing import GAIN, SHARP, Layout, Writer, selector, table

LETTERS = "abcdef"
FILLERS = ".,;:"
ALPHABET = Alphabet(f"^{LETTERS}{FILLERS}?")
_SYMBOLS = len(ALPHABET)


def backup_head() -> Known:
    """The one letter of a prompt, asked for by "?": "^ . , d ; ?" is answered by "d".

    The algorithm: at "?", the primary head ``a0.h0`` attends to the letter, copies it into
    ``letter`` and writes 1 into ``found``. The backup ``a1.h0`` attends to the letter too, but
    where ``found`` is set it attends to ^ instead, twice as strongly, and has nothing to copy.
    ``m1`` writes ``letter``, which saturates at 1/2, into ``answer`` at full strength: a letter
    that both heads have written counts once. The logits read ``answer``. (Backup heads in IOI:
    Wang et al. 2022, arXiv:2211.00593; self-repair: McGrath et al. 2023, arXiv:2307.15771.)

    The residual stream: ``token`` (one-hot; the embedding), ``letter`` (a0.h0 and a1.h0),
    ``found`` (a0.h0), ``filling`` (a0.h1: the mean of the fillers), ``kind`` (m0: letter or
    filler), ``twin`` (a1.h1: the letter, always, which nobody but m1 reads), ``answer`` and
    ``echo`` (m1: of ``letter``, of ``twin``). No positions: it holds for prompts of any length.

    The truth: corrupted prompts have a filler in the letter's place (and other fillers), so that
    the primary finds nothing in them. Ablate it whole, by resampling or by zero, and the backup
    takes over: the metric stays. Ablate the backup: it stays. Ablate both: it is gone. The same
    goes for everything the primary reads. Of single edges only two show: the primary's own into
    m1 (the letter is lost, yet the backup, told that it was found, keeps still) and m1's into the
    logits. ``backup_edges`` are the true ones while the primary is ablated.

    m1's saturation also makes the gradient at ``letter`` zero on clean prompts, and no letter at
    all (its ReLU at 0) on corrupted ones: between them it is not.
    """
    n = len(LETTERS)
    layout = Layout(
        token=_SYMBOLS, letter=n, found=1, filling=_SYMBOLS, kind=2, twin=n, answer=n, echo=n
    )
    w = Writer(
        layout, n_heads=2, d_head=_SYMBOLS, d_mlp=3 * n, vocab_size=_SYMBOLS, n_ctx=64,
        bias_mlp=True,
    )  # fmt: skip
    w.embed()
    ids, fillers = ALPHABET.encode(LETTERS), ALPHABET.encode(FILLERS)
    asks, is_letter = selector(_SYMBOLS, ALPHABET.id("?")), selector(_SYMBOLS, ids)
    letters = np.eye(_SYMBOLS)[:, ids]  # symbol to letter
    nothing = np.zeros((n, 1))

    w.q(0, 0, "token", SHARP * asks)
    w.k(0, 0, "token", is_letter)
    w.v(0, 0, "token", np.hstack([letters, is_letter]))
    w.o(0, 0, "letter", np.vstack([np.eye(n), nothing.T]))
    w.o(0, 0, "found", np.vstack([nothing, [[1]]]))
    w.q(0, 1, "token", SHARP * asks)
    w.k(0, 1, "token", selector(_SYMBOLS, fillers))
    w.v(0, 1, "token", np.eye(_SYMBOLS))
    w.o(0, 1, "filling", np.eye(_SYMBOLS))
    w.unit(0, {("token", i): 1 for i in ids}, {("kind", 0): 1})
    w.unit(0, {("token", i): 1 for i in fillers}, {("kind", 1): 1})

    begin = selector(_SYMBOLS, ALPHABET.id("^"))
    w.q(1, 0, "token", SHARP * np.hstack([asks, 0 * asks]))
    w.q(1, 0, "found", table((1, 2), {(0, 1): 2 * SHARP}))
    w.k(1, 0, "token", np.hstack([is_letter, begin]))
    w.q(1, 1, "token", SHARP * asks)
    w.k(1, 1, "token", is_letter)
    for head, writes in enumerate(("letter", "twin")):
        w.v(1, head, "token", letters)
        w.o(1, head, writes, np.eye(n))
    for i in range(n):
        w.unit(1, {("letter", i): 2}, {("answer", i): 1})
        w.unit(1, {("letter", i): 2}, {("answer", i): -1}, bias=-1)
        w.unit(1, {("twin", i): 1}, {("echo", i): 1})
    w.unembed("answer", GAIN * letters.T)
    single = frozenset({"a0.h0->m1", "m1->logits"})
    resample = frozenset({"input->a1.h0<k>", "input->a1.h0<v>", "a1.h0->m1", "m1->logits"})
    return Known(
        name="backup_head",
        model=w.model("backup_head"),
        alphabet=ALPHABET,
        layout=layout,
        lengths=range(5, 65),
        draw=_draw,
        edges={"resample": single, "zero": single},
        primary=("a0.h0",),
        backup=("a1.h0",),
        backup_edges={"resample": resample, "zero": resample | {"input->a1.h0<q>"}},
    )


def _draw(rng: np.random.Generator, length: int, number: int) -> Drawn:
    clean, corrupted = rng.choice(list(FILLERS), (2, length - 2))
    answer, wrong = (str(letter) for letter in rng.permutation(list(LETTERS))[:2])
    clean[rng.integers(length - 2)] = answer
    return Drawn(f"^{''.join(clean)}?", f"^{''.join(corrupted)}?", answer, wrong)
