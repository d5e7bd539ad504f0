"""What the worlds share: prompts from ids, tokenizers of a few words, and twins as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.metrics import logit_diff
from jaxinterp.model import Tokens
from jaxinterp.tasks import Task
from jaxinterp.tokens import Tokenizer

UNKNOWN = "[UNK]"


def as_prompts(ids: Any) -> Tokens:
    """Ids [n P] as prompts, padded on the right where they are negative."""
    ids = np.asarray(ids, np.int32)
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return Tokens(ids.clip(0), np.where(ids >= 0, places, -1))


def tokenizer_of(
    name: str, tokens: Sequence[str], *, bos: int | None = None, pieces: str = ""
) -> Tokenizer:
    """A tokenizer whose ids are places in ``tokens``.

    pieces: a regular expression of the tokens in a text (default: words between spaces). bos:
    the token that begins every prompt. Anything else in a text gets the id after the last, which
    is outside the model's vocabulary: the forward pass refuses it.
    """
    vocabulary = {token: i for i, token in enumerate([*tokens, UNKNOWN])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if pieces:
        backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos is not None:
        backend.add_special_tokens([tokens[bos]])
    return Tokenizer(backend, bos=bos, add_bos=bos is not None, name=name)


def task_of(
    name: str,
    tokenizer: Tokenizer,
    clean: np.ndarray,
    corrupted: np.ndarray,
    answers: np.ndarray,
    wrong: np.ndarray,
    roles: Mapping[str, Any],
    *,
    seed: int,
    corruption: str,
    position: int | None = None,
    about: Mapping[str, np.ndarray] | None = None,
    **meta: Any,
) -> Task:
    """The task of prompts without padding [n P] and their twins.

    roles: positions [n], or one that all prompts share. position: where the answer is read
    (default: at the last). The metric is the logit difference of answers [n] and wrong [n].
    """
    n, bare = len(clean), len(tokenizer.prefix)

    def texts(ids: np.ndarray) -> tuple[str, ...]:
        return tuple(tokenizer.decode(row[bare:]) for row in ids)

    return Task(
        name=name,
        clean=as_prompts(clean),
        corrupted=as_prompts(corrupted),
        metric=logit_diff(answers, wrong, position),
        answers=np.asarray(answers, np.int32),
        wrong=np.asarray(wrong, np.int32),
        roles={r: np.array(np.broadcast_to(at, n), np.int32) for r, at in roles.items()},
        clean_text=texts(clean),
        corrupted_text=texts(corrupted),
        seed=seed,
        corruption=corruption,
        prompts=dict(about or {}),
        meta={"n_made": n, "tokenizer": repr(tokenizer), **meta},
    )


def pick(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """One column [n] of each row of bool [n P], drawn evenly from those allowed."""
    return np.where(allowed, rng.random(allowed.shape), -1).argmax(1)


def at_least_one(**sizes: int) -> None:
    """Refuse sizes that are no whole numbers from 1, naming them."""
    for name, size in sizes.items():
        whole_number(name, size, 1, MANY)


def generator(seed: Any) -> np.random.Generator:
    """NumPy's random generator of a seed, as `random_seed` takes it."""
    return np.random.default_rng(random_seed(seed))
