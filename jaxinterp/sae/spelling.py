"""The first-letter task: words, what stands at their tokens, and probes that tell the letter.

The task on which Chanin et al. 2024 (arXiv:2409.14507) and SAEBench (Karvonen et al. 2025,
arXiv:2503.09532) measure feature absorption. Letters C, words n, width D.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.grid_runs import batch_size, ignore
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import require
from jaxinterp.points import layers_in
from jaxinterp.probes import Splits, make_splits
from jaxinterp.probes.probe import Fits
from jaxinterp.results import claim
from jaxinterp.sae.absorption import absorption_rates, check_probing, f1_of, split_features
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.harvest import site_values
from jaxinterp.sweep.schedule import MEMORY
from jaxinterp.tokens import Tokenizer

if TYPE_CHECKING:
    import xarray as xr

PROMPT = "{word} has the first letter:"
PENALTIES = np.geomspace(1e-4, 1, 5)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """Words, what stands at their tokens, and probes that tell their first letters.

    words [n], letters [C]; labels [n]; x [n D]; splits: one; rows [C D], bias [C]: of the probes;
    f1 [C], accuracy: theirs on the test's words; known [C]: the letters that count.
    """

    words: list[str]
    letters: list[str]
    labels: np.ndarray
    x: np.ndarray
    splits: Splits
    rows: np.ndarray
    bias: np.ndarray
    f1: np.ndarray
    accuracy: float
    known: np.ndarray
    attrs: dict[str, Any]

    @classmethod
    def fit(
        cls, words: Sequence[str], x: Any, *, min_words: int = 10, min_f1: float = 0.6,
        min_letters: int = 20, penalties: Any = PENALTIES, seed: int = 0,
        attrs: dict[str, Any] | None = None,
    ) -> Spelling:  # fmt: skip
        """Probes of words' activations x [n D], one for each letter against the others.

        Of the words 60% are trained on, on 20% the penalty is chosen, 20% are the test. Letters
        with fewer than min_words words are left out with their words. A letter is known if its
        probe's F1 on the test is min_f1 or more (SAEBench's 0.6, as its 20 letters).

        Raises ``ValueError``, with what was measured, where fewer than min_letters are known: then
        the model does not tell, or not there, how words are spelled.
        """
        _check_fit(min_words, min_f1, min_letters)
        seed = random_seed(seed)
        x = np.asarray(x, np.float32)
        bad = next((w for w in words if not w.strip()[:1].isalpha()), None)
        if bad is not None or x.ndim != 2 or len(x) != len(words):
            raise ValueError(
                f"x is {list(x.shape)} for {len(words)} words{f', one {bad!r}' if bad else ''}; "
                "expected [words, width], and words that begin with a letter."
            )
        first = np.array([word.strip()[0].lower() for word in words])
        letters, counts = np.unique(first, return_counts=True)
        letters = letters[counts >= min_words]
        if len(letters) < max(min_letters, 2):
            raise ValueError(
                f"{len(letters)} letters have {min_words} words or more, of {len(words)} words; "
                f"expected {max(min_letters, 2)}: give more words, or lower min_letters."
            )
        kept = np.flatnonzero(np.isin(first, letters))
        labels, x, C = np.searchsorted(letters, first[kept]), x[kept], len(letters)
        splits = make_splits(labels, n_splits=1, seed=seed)
        parts = (splits.train, splits.validation, splits.test)
        fits = Fits(Splits(*(np.repeat(part, C, 0) for part in parts)), penalties, 2, ignore)
        _, W, b, _ = fits(x, (labels == np.arange(C)[:, None]).astype(int))
        rows, bias, test = W[..., 0], b[:, 0], splits.test[0]
        logits = x[test].astype(np.float64) @ rows.T + bias
        f1 = f1_of(logits > 0, labels[test][:, None] == np.arange(C))
        accuracy = float((logits.argmax(1) == labels[test]).mean())
        known = f1 >= min_f1
        if known.sum() < min_letters:
            raise ValueError(
                f"On words held out the probes' accuracy is {accuracy:.3f}, and {known.sum()} of "
                f"{C} letters have an F1 of {min_f1} or more; expected {min_letters}: the model "
                "does not tell how words are spelled there. Take an earlier layer, or a larger "
                "model."
            )
        return cls(
            [words[i] for i in kept.tolist()], letters.tolist(), labels, x, splits, rows, bias, f1,
            accuracy, known, {
                **(attrs or {}), "accuracy": accuracy, "n_train": int(splits.train.sum()),
                "n_test": int(test.sum()), "min_words": min_words, "min_f1": min_f1, "seed": seed,
            },
        )  # fmt: skip

    def measure(
        self, d: Dictionary, *, tau: float = 0.03, max_k: int = 10, penalty: float = 1e-3,
        **thresholds: Any,
    ) -> xr.Dataset:  # fmt: skip
        """`absorption_rates` of the test's words by known letter, `split_features` of the others.

        thresholds: as in `absorption_rates`. Adds, by letter, ``probe_f1``, the probe's on the
        test; ``sparse_f1``, the k-sparse probe's on the words that k was chosen on; and ``feature``
        (letter, rank), the split, filled up with -1. The coordinate ``text`` holds the words.
        """
        s, C = self.splits, len(self.letters)
        found = split_features(
            d, self.x, self.labels, s.train[0], s.validation[0], tau=tau, max_k=max_k,
            penalty=penalty,
        )  # fmt: skip
        test = np.flatnonzero(s.test[0])
        out = absorption_rates(
            d, self.x[test], self.labels[test], self.rows, found.features, probe_bias=self.bias,
            letters=self.letters, **thresholds,
        )  # fmt: skip
        k = np.array([len(features) for features in found.features])
        taken = np.where(np.arange(max_k) < k[:, None], found.ranked, -1)
        out = out.assign(
            probe_f1=("letter", self.f1),
            sparse_f1=("letter", found.f1[np.arange(C), k - 1]),
            feature=(("letter", "rank"), taken),
        ).assign_coords(text=("word", [self.words[i] for i in test]))
        out = out.isel(letter=self.known, word=self.known[self.labels[test]])
        return out.assign_attrs(**self.attrs, tau=tau, max_k=max_k, penalty=penalty)


def _check_fit(
    min_words: int = 1, min_f1: float = 0.0, min_letters: int = 1, **others: Any
) -> None:
    """Refuse limits of `Spelling.fit` that mean nothing, before the model is run."""
    whole_number("min_words", min_words, 1)
    real_number("min_f1", min_f1, least=0, most=1)
    whole_number("min_letters", min_letters, 0)


def fit_spelling(
    model: Model, tokenizer: Tokenizer, site: str, layer: int, *, words: Any = None,
    prompt: str = PROMPT, examples: int = 10, seed: int = 0, batch: int | None = None,
    on_done: Callable[[int], None] = ignore, **fit: Any,
) -> Spelling:  # fmt: skip
    """The first-letter task at one site and layer: `Spelling.measure` takes dictionaries there.

    words: the words, or how many to draw of the vocabulary's (default all): tokens that begin with
    a space and are two or more of the letters a to z, of either case. Each word stands in a prompt
    after ``examples`` others with their answers ("... tartan has the first letter: T"), the same
    for all words and none of them; its activation is that at its token (of the papers' prompts
    each has examples of its own). batch: prompts per program; on_done: called with the number of
    prompts done; fit: as in `Spelling.fit`.

    Raises ``ValueError`` for words that are not one token, a prompt without ``{word}``, sites that
    are not one vector per layer and position, and as `Spelling.fit` does.
    """
    place = require(model.config, site)
    if place.axes[0] != "position" or len(place.axes) != 2 or not place.layered:
        raise ValueError(f"{site!r} has axes {place.axes}, expected a vector in each layer.")
    (layer,) = layers_in(model.config.n_layers, [layer], "layer")
    before, found, after = prompt.partition("{word}")
    examples, seed = whole_number("examples", examples, 0, MANY), random_seed(seed)
    whole_number("batch", batch, 1, optional=True)
    _check_fit(**fit)
    if not found or "{word}" in after:
        raise ValueError(f"prompt={prompt!r}, expected one {{word}} in it.")
    shown, rest = _drawn(tokenizer, words, examples, np.random.default_rng(seed))
    lines = [f"{before}{w}{after} {w.strip()[0].upper()}\n" for w in shown]
    head = [*tokenizer.prefix, *tokenizer.encode("".join(lines) + before, add_bos=False)]
    if not head:
        raise ValueError("Words would be their prompts' first tokens, which differ: give examples.")
    tail: list[int] = []  # what follows a word cannot reach it in a causal model
    if not model.config.causal:
        tail = [*tokenizer.encode(after, add_bos=False), *tokenizer.suffix]
    tokens = as_tokens(np.array([[*head, tokenizer.single_token(w), *tail] for w in rest]))
    check_tokens(model.config, tokens)
    size, pieces = batch_size(model, tokens, batch, MEMORY), []
    for begin in range(0, len(tokens), size):
        at = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        pieces.append(np.asarray(_values(model, tokens[at], len(head), site=site, layer=layer)))
        on_done(min(size, len(tokens) - begin))
    attrs = claim(
        model, method="first-letter absorption", site=site, layer=layer, prompt=prompt,
        examples=shown, n_words=len(rest),
    )  # fmt: skip
    return Spelling.fit(rest, np.concatenate(pieces)[: len(tokens)], seed=seed, attrs=attrs, **fit)


@functools.partial(jit, static=("site", "layer"))
def _values(model: Model, tokens: Tokens, column: Any, *, site: str, layer: int) -> jax.Array:
    return site_values(model, tokens, (site,), (layer,))[site][0][:, column]


def _drawn(
    tokenizer: Tokenizer, words: Any, examples: int, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Words, each with its space, as examples and for the task."""
    count = None
    if words is None or isinstance(words, int):
        count, words = words, vocabulary_words(tokenizer)
    every = list(dict.fromkeys(" " + word.strip() for word in words))
    if len(every) < examples + (count or 1):
        raise ValueError(
            f"There are {len(every)} words, expected {examples} examples and {count or 'some'} "
            "words beside them."
        )
    order = [every[i] for i in rng.permutation(len(every))]
    return order[:examples], sorted(order[examples:][:count])


def vocabulary_words(tokenizer: Tokenizer) -> list[str]:
    """The tokens that begin with a space and are two or more of a to z, of either case."""
    texts = set(tokenizer.token_texts(np.arange(tokenizer.vocab_size)).tolist())
    return [
        text for text in sorted(texts)
        if text[:1] == " " and len(text) > 2 and text[1:].isascii() and text[1:].isalpha()
        and tokenizer.is_single_token(text)
    ]  # fmt: skip


def first_letter(
    model: Model, d: Dictionary, tokenizer: Tokenizer, *, words: Any = None, prompt: str = PROMPT,
    examples: int = 10, tau: float = 0.03, max_k: int = 10, seed: int = 0,
    batch: int | None = None, on_done: Callable[[int], None] = ignore, min_words: int = 10,
    min_f1: float = 0.6, min_letters: int = 20, **thresholds: Any,
) -> xr.Dataset:  # fmt: skip
    """How far an SAE's first-letter features are absorbed: `fit_spelling`, `Spelling.measure`.

    Of several dictionaries at one place call those two, and the model runs once. Mean absorption,
    as papers report it, is ``.full.mean()`` and ``.fraction.mean()``, over letters.

    Returns dims (letter, word, rank): the known letters, and the test's words of them.

    Raises ``ValueError`` for other kinds than SAEs, one without a site and layer, and where the
    model does not know the letters (with the accuracy measured).
    """
    site, layer = d.config.place
    check_probing(d.config.n_features, tau, max_k, thresholds.get("penalty", 1.0))
    found = fit_spelling(
        model, tokenizer, site, layer, words=words, prompt=prompt, examples=examples, seed=seed,
        batch=batch, on_done=on_done, min_words=min_words, min_f1=min_f1, min_letters=min_letters,
    )  # fmt: skip
    return found.measure(d, tau=tau, max_k=max_k, **thresholds)
