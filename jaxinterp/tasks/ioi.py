"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593).

"When Mary and John went to the store, John gave a drink to" -> " Mary": the name that did not
occur twice. The roles: IO (Mary), the subject's first and second mention S1 and S2, the token
after S1 ("S1+1", where induction heads look), and END, which predicts the answer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct, fitting
from jaxinterp.tasks.words import Span, fill, single_kinds
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
    check_request(
        tokenizer, n, seed, prepend_bos,
        templates=(templates, "both", "ABBA", "BABA"),
        corruption=(corruption, "swap_subject", "abc", "symmetric"),
    )  # fmt: skip
    listed = {"names": NAMES, "places": PLACES, "objects": OBJECTS}
    words, dropped = single_kinds(tokenizer, "IOI", listed, {"names": 4})
    names, places, objects = words.values()
    samples = {
        template: _pair(template, "ABBA", names[:3], places[0], objects[0], corruption)
        for template in TEMPLATES
    }
    kept, left_out = fitting(tokenizer, "IOI", samples, equal_length)
    orders = ("ABBA", "BABA") if templates == "both" else (templates,)
    rng = np.random.default_rng(seed)

    def make(i: int) -> Twins:
        people = [names[j] for j in rng.choice(len(names), 3, replace=False)]
        template, place, object_ = (
            choices[rng.integers(len(choices))] for choices in (kept, places, objects)
        )
        return _pair(template, orders[i % len(orders)], people, place, object_, corruption)

    possible = len(orders) * len(kept) * len(places) * len(objects)
    possible *= len(names) * (len(names) - 1)
    return build(
        "ioi", tokenizer, distinct(n, possible, make), seed=seed, corruption=corruption,
        prepend_bos=prepend_bos,
        meta={"templates": templates, "dropped": {**dropped, "templates": left_out}},
    )  # fmt: skip


def _pair(
    template: str, order: str, people: list[str], place: str, object_: str, corruption: str
) -> Twins:
    """One prompt about the IO, the subject and a third name."""
    io, subject, third = people
    first, second = (io, subject) if order == "ABBA" else (subject, io)

    def text(first: str, second: str, again: str) -> tuple[str, dict[str, Span]]:
        names = {"A": first, "B": second, "S": again}
        return fill(template, {**names, "place": place, "object": object_})

    clean, at = text(first, second, subject)
    if corruption == "symmetric":
        corrupted, _ = text(second, first, io)
    else:
        corrupted, _ = text(first, second, io if corruption == "swap_subject" else third)
    return Twins(
        clean,
        corrupted,
        spans={
            "IO": at["A" if order == "ABBA" else "B"],
            "S1": at["B" if order == "ABBA" else "A"],
            "S2": at["S"],
        },
        after={"S1": "S1+1"},
        answers=[f" {io}"],
        wrong=[f" {subject}"],
        about={"template": template, "order": order, "IO": io, "S": subject},
    )
