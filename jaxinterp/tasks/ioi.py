"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593).

"When Mary and John went to the store, John gave a drink to" -> " Mary": the name that did not
occur twice. The roles: IO (Mary), the subject's first and second mention S1 and S2, the token
after S1 ("S1+1", where induction heads look), and END, which predicts the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxinterp.metrics import logit_diff
from jaxinterp.tasks.task import Task
from jaxinterp.tokens import Tokenizer

Order = Literal["both", "ABBA", "BABA"]
Corruption = Literal["swap_subject", "abc", "symmetric"]

# {A} and {B} are the first mentions, {S} the second mention of the subject. No template
# begins with a name: every name follows a space, so that it is the same token everywhere.
TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "After {A} and {B} met at the {place}, {S} handed a {object} to",
    "While {A} and {B} waited at the {place}, {S} passed a {object} to",
    "Before {A} and {B} came to the {place}, {S} promised a {object} to",
    "Once {A} and {B} had left the {place}, {S} sent a {object} to",
    "As {A} and {B} drove to the {place}, {S} offered a {object} to",
    "Because {A} and {B} talked at the {place}, {S} brought a {object} to",
    "Then {A} and {B} walked to the {place}, and {S} lent a {object} to",
    "Yesterday {A} and {B} visited the {place}, where {S} showed a {object} to",
    "Last week {A} and {B} argued at the {place}, but later {S} gave a {object} to",
    "The friends {A} and {B} found a {object} at the {place}, and {S} gave it to",
)
PLACES = (
    "store", "park", "school", "house", "office", "station", "garden", "hospital", "market",
    "library", "beach", "restaurant",
)  # fmt: skip
OBJECTS = (
    "drink", "book", "ring", "phone", "ball", "letter", "key", "gift", "cup", "ticket", "bag",
    "flower",
)  # fmt: skip
_NAMES = """
    Aaron Adam Alan Alex Alice Amy Andrew Anna Anthony Ashley Barbara Ben Brian Carl Carol
    Charles Chris Christine Daniel David Diana Donald Dylan Edward Elizabeth Emily Emma Eric
    Frank Gary George Grace Greg Hannah Harry Helen Henry Howard Jack Jacob James Jane Jason
    Jeff Jennifer Jessica Jim Joan Joe John Jonathan Joseph Joshua Julia Justin Karen Kate
    Katherine Keith Kelly Kevin Kim Kyle Larry Laura Linda Lisa Louis Lucy Margaret Maria Marie
    Mark Martin Mary Matthew Michael Michelle Mike Nancy Nathan Nicholas Oliver Patrick Paul
    Peter Philip Rachel Richard Robert Roger Rose Ruth Ryan Samuel Sarah Scott Simon Stephen
    Steven Susan Thomas Tim Tom Tyler Victoria Walter William
"""
NAMES = tuple(_NAMES.split())


class _Prompt(NamedTuple):
    template: str
    order: str
    io: str
    subject: str
    third: str
    place: str
    object: str

    def fill(self, first: str, second: str, again: str) -> str:
        """The text with these names, in the template's order of mention."""
        names = {"A": first, "B": second, "S": again}
        return self.template.format(**names, place=self.place, object=self.object)

    @property
    def mentions(self) -> tuple[str, str]:
        return (self.io, self.subject) if self.order == "ABBA" else (self.subject, self.io)

    def clean(self) -> str:
        return self.fill(*self.mentions, self.subject)

    def corrupted(self, corruption: str) -> str:
        first, second = self.mentions
        if corruption == "symmetric":
            return self.fill(second, first, self.io)
        return self.fill(first, second, self.io if corruption == "swap_subject" else self.third)

    def spans(self) -> dict[str, tuple[int, int]]:
        """The characters of each name's mention in the clean text, in reading order."""
        first, second = self.mentions
        out, text = {}, ""
        roles = ("IO", "S1") if self.order == "ABBA" else ("S1", "IO")
        named = {"{A}": (roles[0], first), "{B}": (roles[1], second), "{S}": ("S2", self.subject)}
        template = self.template.replace("{place}", self.place).replace("{object}", self.object)
        for mark, (role, name) in named.items():
            before, template = template.split(mark)
            text += before
            out[role] = (len(text), len(text) + len(name))
            text += name
        return out


def ioi(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    templates: Order = "both",
    corruption: Corruption = "swap_subject",
    prepend_bos: bool | None = None,
    equal_length: bool = True,
) -> Task:
    """n distinct IOI prompts, each with a corrupted twin of the same tokens but for names.

    templates: the order of the first mentions: "ABBA" (IO first), "BABA" (the subject first),
    or both in turn. corruption: "swap_subject" puts the IO's name at S2 (the answer flips;
    the first difference is late), "abc" a third name at S2 (no name occurs twice),
    "symmetric" exchanges both names everywhere (the answer flips; the first difference is
    early). prepend_bos: None follows the tokenizer's policy. equal_length: use only the
    templates of the commonest token length, so that absolute positions align.

    Every name, place and object is one token; ``meta`` names those dropped because they are
    not. The metric is the logit difference of the IO's and the subject's name at END.

    Raises ``ValueError`` when fewer than 4 names (or no place, object or template) remain, when
    n is more than the distinct prompts there are, or for tokenizers that end a prompt with a
    token of their own.
    """
    if templates not in ("both", "ABBA", "BABA"):
        raise ValueError(f"templates={templates!r}, expected 'both', 'ABBA' or 'BABA'.")
    if corruption not in ("swap_subject", "abc", "symmetric"):
        raise ValueError(
            f"corruption={corruption!r}, expected 'swap_subject', 'abc' or 'symmetric'."
        )
    if seed < 0:
        raise ValueError(f"seed={seed}, expected an integer from 0.")
    if n < 1:
        raise ValueError(f"n={n}: a task needs at least one prompt.")
    if tokenizer.suffix and prepend_bos is not False:
        raise ValueError(
            f"{tokenizer!r} ends every prompt with a token of its own, so that END does not "
            "stand before the answer: pass prepend_bos=False."
        )
    words, dropped = {}, {}
    for kind, listed in {"names": NAMES, "places": PLACES, "objects": OBJECTS}.items():
        words[kind], dropped[kind] = _single(tokenizer, listed)
        least = 4 if kind == "names" else 1
        if len(words[kind]) < least:
            raise ValueError(
                f"Only {len(words[kind])} of {len(listed)} {kind} are single tokens in "
                f"{tokenizer!r}; IOI needs {least}: it cannot be measured with this tokenizer."
            )
    kept, left_out = _fitting(tokenizer, words, equal_length)
    drawn = _draw(np.random.default_rng(seed), n, kept, words, templates)

    clean_text = tuple(prompt.clean() for prompt in drawn)
    corrupted_text = tuple(prompt.corrupted(corruption) for prompt in drawn)
    answers = np.array([tokenizer.single_token(f" {p.io}") for p in drawn], np.int32)
    wrong = np.array([tokenizer.single_token(f" {p.subject}") for p in drawn], np.int32)
    for text, prompt, answer in zip(clean_text, drawn, answers, strict=True):
        ids = tokenizer.encode(text, add_bos=prepend_bos)
        if tokenizer.encode(f"{text} {prompt.io}", add_bos=prepend_bos) != [*ids, answer]:
            raise ValueError(f"{text!r} is cut differently when its answer follows.")
    return Task(
        name="ioi",
        clean=tokenizer(clean_text, add_bos=prepend_bos),
        corrupted=tokenizer(corrupted_text, add_bos=prepend_bos),
        metric=logit_diff(answers, wrong),
        answers=answers,
        wrong=wrong,
        roles=_roles(tokenizer, drawn, clean_text, prepend_bos),
        clean_text=clean_text,
        corrupted_text=corrupted_text,
        seed=seed,
        corruption=corruption,
        prompts={
            "template": np.array([p.template for p in drawn]),
            "order": np.array([p.order for p in drawn]),
            "IO": np.array([p.io for p in drawn]),
            "S": np.array([p.subject for p in drawn]),
        },
        meta={
            "n_made": n,
            "templates": templates,
            "prepend_bos": prepend_bos,
            "tokenizer": repr(tokenizer),
            "dropped": {**dropped, "templates": left_out},
        },
    )


def _single(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words that are one token of their own after a space, and the pieces of the others."""
    kept: dict[int, str] = {}
    dropped = {}
    for word in words:
        if tokenizer.is_single_token(f" {word}"):
            kept.setdefault(tokenizer.single_token(f" {word}"), word)
        else:
            dropped[word] = tokenizer.str_tokens(f" {word}", add_bos=False)
    return list(kept.values()), dropped


def _fitting(
    tokenizer: Tokenizer, words: dict[str, list[str]], equal_length: bool
) -> tuple[list[str], dict[str, int]]:
    """The templates to use, and the token length (without BOS) of those left out.

    With ``equal_length``, those of the commonest length, the shortest of equally common ones.
    """
    a, b = words["names"][:2]
    place, object_ = words["places"][0], words["objects"][0]
    fillers = {"A": a, "B": b, "S": b, "place": place, "object": object_}
    lengths = {t: len(tokenizer.encode(t.format(**fillers), add_bos=False)) for t in TEMPLATES}
    if not equal_length:
        return list(lengths), {}
    common = min(Counter(lengths.values()).items(), key=lambda item: (-item[1], item[0]))[0]
    kept = [t for t, length in lengths.items() if length == common]
    return kept, {t: length for t, length in lengths.items() if length != common}


def _draw(
    rng: np.random.Generator, n: int, templates: list[str], words: dict[str, list[str]], orders: str
) -> list[_Prompt]:
    """n distinct prompts; the orders of mention take turns."""
    names, places, objects = words["names"], words["places"], words["objects"]
    turns = ("ABBA", "BABA") if orders == "both" else (orders,)
    possible = len(turns) * len(templates) * len(places) * len(objects)
    possible *= len(names) * (len(names) - 1)
    if n > possible // 2:  # so that drawing until a new one comes up stays quick
        raise ValueError(f"n={n} is more than half of the {possible} distinct prompts there are.")
    drawn: dict[str, _Prompt] = {}
    while len(drawn) < n:
        io, subject, third = (names[i] for i in rng.choice(len(names), 3, replace=False))
        template, place, object_ = (
            listed[rng.integers(len(listed))] for listed in (templates, places, objects)
        )
        order = turns[len(drawn) % len(turns)]
        prompt = _Prompt(template, order, io, subject, third, place, object_)
        drawn.setdefault(prompt.clean(), prompt)
    return list(drawn.values())


def _roles(
    tokenizer: Tokenizer, drawn: list[_Prompt], texts: tuple[str, ...], add_bos: bool | None
) -> dict[str, np.ndarray]:
    """The position [n] of each role; every mention of a name is one token."""
    found: dict[str, list[Any]] = {role: [] for role in ("IO", "S1", "S1+1", "S2", "END")}
    for prompt, text in zip(drawn, texts, strict=True):
        for role, span in prompt.spans().items():
            first, last = tokenizer.positions_of_span(text, *span, add_bos=add_bos)
            if first != last:
                raise ValueError(f"{role} of {text!r} is more than one token there.")
            found[role].append(last)
        found["S1+1"].append(found["S1"][-1] + 1)
        found["END"].append(len(tokenizer.encode(text, add_bos=add_bos)) - 1)
    return {role: np.array(at, np.int32) for role, at in found.items()}
