"""From pairs of texts to a `Task`: what all tasks do alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxinterp.checks import random_seed, whole_number
from jaxinterp.metrics import Metric, logit_diff
from jaxinterp.tasks.task import Task
from jaxinterp.tasks.words import Span, commonest, following, position
from jaxinterp.tokens import Tokenizer

Key = TypeVar("Key", bound=Hashable)


class Twins(NamedTuple):
    """One prompt with its corrupted twin.

    spans: the characters of each role in the clean text; each is one token. after: roles that
    stand one token after another's, {the other: role}. answers, wrong: the texts that are right
    and wrong after the clean prompt, each one token there. about: more about the prompt, the
    same keys in all pairs of a task.
    """

    clean: str
    corrupted: str
    spans: Mapping[str, Span]
    answers: Sequence[str]
    wrong: Sequence[str]
    about: Mapping[str, Any]
    after: Mapping[str, str] = {}


PROMPTS = 1_000_000  # of a task: they are made one by one


def check_request(
    tokenizer: Tokenizer, n: int, seed: int, prepend_bos: bool | None, **choices: tuple[Any, ...]
) -> None:
    """Refuse what no task can do.

    choices: each option with a closed list of values, as (value, allowed, allowed, ...).
    """
    for option, (value, *allowed) in choices.items():
        if value not in allowed:
            names = [repr(one) for one in allowed]
            expected = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
            raise ValueError(f"{option}={value!r}, expected {expected}.")
    random_seed(seed)
    whole_number("n", n, 1, PROMPTS)
    if tokenizer.suffix and prepend_bos is not False:
        raise ValueError(
            f"{tokenizer!r} ends every prompt with a token of its own, so that END does not "
            "stand before the answer: pass prepend_bos=False."
        )


def fitting(
    tokenizer: Tokenizer,
    task: str,
    samples: Mapping[Key, Twins],
    equal_length: bool,
    kind: str = "template",
) -> tuple[list[Key], dict[Key, Any]]:
    """The templates to use, and the token length (without BOS) of those left out.

    samples: a pair made from each template (or other ``kind`` of material). Left out are those
    whose twins differ in length, with both lengths, and with ``equal_length`` those that are
    not of the commonest length.

    Raises ``ValueError`` when no twins are of one length.
    """
    both = {
        key: [len(tokenizer.encode(text, add_bos=False)) for text in (pair.clean, pair.corrupted)]
        for key, pair in samples.items()
    }
    lengths = {key: a for key, (a, b) in both.items() if a == b}
    if not lengths:
        pair = next(iter(samples.values()))
        a, b = next(iter(both.values()))
        raise ValueError(
            f"No {kind} of {task} has aligned positions with {tokenizer!r}: {pair.clean!r} has "
            f"{a} tokens, its corrupted twin {pair.corrupted!r} {b}."
        )
    common = commonest(lengths)
    kept = [key for key, length in lengths.items() if length == common or not equal_length]
    left_out = {key: lengths.get(key, pair) for key, pair in both.items() if key not in set(kept)}
    return kept, left_out


def distinct(n: int, possible: int, make: Callable[[int], Twins]) -> list[Twins]:
    """n pairs with different clean texts, the i-th from ``make(i)``.

    Raises ``ValueError`` when n is more than half of the ``possible`` ones.
    """
    if n > possible // 2:  # so that drawing until a new one comes up stays quick
        raise ValueError(f"n={n} is more than half of the {possible} distinct prompts there are.")
    drawn: dict[str, Twins] = {}
    while len(drawn) < n:
        pair = make(len(drawn))
        drawn.setdefault(pair.clean, pair)
    return list(drawn.values())


def _refuse_unknown(name: str, tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> None:
    bad = [i for i, t in enumerate(ids) if t != tokenizer.bos and tokenizer.is_unknown(t)]
    if bad:
        raise ValueError(
            f"{tokenizer!r} does not know token {bad[0]} of {text!r}, a prompt of {name}: take a "
            "model of English text, or, for a small model, the task of its own world "
            "(jaxinterp.algorithmic)."
        )


def build(
    name: str,
    tokenizer: Tokenizer,
    pairs: Sequence[Twins],
    *,
    seed: int,
    corruption: str,
    prepend_bos: bool | None,
    meta: Mapping[str, Any],
    metric: Callable[[Any, Any], Metric] = logit_diff,
) -> Task:
    """The task of these pairs; END is each prompt's last token.

    Raises ``ValueError`` for roles or answers that are not one token where they stand, for twins
    of different length, and for text that the tokenizer does not know.
    """
    clean = tokenizer([pair.clean for pair in pairs], add_bos=prepend_bos)
    roles: dict[str, list[int]] = {}
    answers: list[list[int]] = []
    wrong: list[list[int]] = []
    for row, pair in enumerate(pairs):
        ids = tokenizer.encode(pair.clean, add_bos=prepend_bos)
        other = tokenizer.encode(pair.corrupted, add_bos=prepend_bos)
        if len(other) != len(ids):
            raise ValueError(
                f"{name} has no aligned positions with {tokenizer!r}: {pair.clean!r} has "
                f"{len(ids)} tokens, its corrupted twin {pair.corrupted!r} {len(other)}."
            )
        _refuse_unknown(name, tokenizer, pair.clean, ids)
        _refuse_unknown(name, tokenizer, pair.corrupted, other)
        found = {}
        for role, span in pair.spans.items():
            found[role] = position(tokenizer, pair.clean, span, role, prepend_bos)
            if role in pair.after:
                found[pair.after[role]] = found[role] + 1
        found["END"] = len(ids) - 1
        for role, at in found.items():
            roles.setdefault(role, []).append(at)
        for texts, sets in ((pair.answers, answers), (pair.wrong, wrong)):
            sets.append([following(tokenizer, pair.clean, ids, t, prepend_bos) for t in texts])
        if set(answers[row]) & set(wrong[row]):
            raise ValueError(
                f"An answer of {pair.clean!r} is the same token as a wrong one in {tokenizer!r}."
            )
    return Task(
        name=name,
        clean=clean,
        corrupted=tokenizer([pair.corrupted for pair in pairs], add_bos=prepend_bos),
        metric=metric(answers, wrong),
        answers=_array(answers),
        wrong=_array(wrong),
        roles={role: np.array(at, np.int32) for role, at in roles.items()},
        clean_text=tuple(pair.clean for pair in pairs),
        corrupted_text=tuple(pair.corrupted for pair in pairs),
        seed=seed,
        corruption=corruption,
        prompts={key: np.array([pair.about[key] for pair in pairs]) for key in pairs[0].about},
        meta={
            "n_made": len(pairs),
            "prepend_bos": prepend_bos,
            "tokenizer": repr(tokenizer),
            **meta,
        },
    )


def _array(sets: list[list[int]]) -> np.ndarray:
    """Token ids [n], or sets [n k] filled up with -1."""
    longest = max(map(len, sets))
    out = np.array([[*ids, *[-1] * (longest - len(ids))] for ids in sets], np.int32)
    return out[:, 0] if longest == 1 else out
