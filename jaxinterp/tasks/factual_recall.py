"""Factual recall (Meng et al. 2022, arXiv:2202.05262; Geva et al. 2023, arXiv:2304.14767).

"The capital of France is the city of" -> " Paris". The roles: the subject's first and last
token, and END.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request
from jaxinterp.tasks.words import commonest, fill, single
from jaxinterp.tokens import Tokenizer

Relation = Literal["capital", "language", "continent", "all"]

# No template begins with its subject: every subject follows a space.
TEMPLATES = {
    "capital": (
        "The capital of {subject} is the city of",
        "As the capital of {subject}, the city of",
        "She lives in the capital of {subject},",
    ),
    "language": (
        "The official language of {subject} is",
        "In {subject} the official language is",
        "The national language of {subject} is",
    ),
    "continent": (
        "The country of {subject} is on the continent of",
        "The people of {subject} live on the continent of",
    ),
}
_CAPITALS = """
    Afghanistan/Kabul Austria/Vienna Bangladesh/Dhaka Belgium/Brussels Bulgaria/Sofia Canada/Ottawa
    Chile/Santiago China/Beijing Croatia/Zagreb Cuba/Havana Denmark/Copenhagen Egypt/Cairo
    England/London Finland/Helsinki France/Paris Germany/Berlin Greece/Athens Hungary/Budapest
    Indonesia/Jakarta Iran/Tehran Iraq/Baghdad Ireland/Dublin Italy/Rome Jamaica/Kingston
    Japan/Tokyo Kenya/Nairobi Lebanon/Beirut Libya/Tripoli Nepal/Kathmandu Norway/Oslo
    Pakistan/Islamabad Peru/Lima Poland/Warsaw Portugal/Lisbon Qatar/Doha Romania/Bucharest
    Russia/Moscow Scotland/Edinburgh Serbia/Belgrade Somalia/Mogadishu Spain/Madrid
    Sweden/Stockholm Syria/Damascus Taiwan/Taipei Thailand/Bangkok Tunisia/Tunis Turkey/Ankara
    Uruguay/Montevideo Venezuela/Caracas Vietnam/Hanoi Wales/Cardiff
    South_Korea/Seoul North_Korea/Pyongyang Saudi_Arabia/Riyadh New_Zealand/Wellington
"""
_LANGUAGES = """
    Algeria/Arabic Argentina/Spanish Australia/English Austria/German Brazil/Portuguese
    Chile/Spanish China/Chinese Colombia/Spanish Cuba/Spanish Denmark/Danish Ecuador/Spanish
    Egypt/Arabic England/English France/French Germany/German Greece/Greek Hungary/Hungarian
    Iran/Persian Iraq/Arabic Italy/Italian Japan/Japanese Jordan/Arabic Lebanon/Arabic
    Libya/Arabic Mexico/Spanish Norway/Norwegian Poland/Polish Portugal/Portuguese
    Qatar/Arabic Russia/Russian Spain/Spanish Sweden/Swedish Syria/Arabic Thailand/Thai
    Turkey/Turkish Venezuela/Spanish Vietnam/Vietnamese South_Korea/Korean North_Korea/Korean
    Saudi_Arabia/Arabic New_Zealand/English
"""
_CONTINENTS = """
    Algeria/Africa Austria/Europe Belgium/Europe Cambodia/Asia Cameroon/Africa China/Asia
    Denmark/Europe Ethiopia/Africa Finland/Europe France/Europe Germany/Europe Ghana/Africa
    India/Asia Ireland/Europe Italy/Europe Japan/Asia Kenya/Africa Liberia/Africa Malaysia/Asia
    Mali/Africa Mongolia/Asia Morocco/Africa Nepal/Asia Nigeria/Africa Norway/Europe
    Pakistan/Asia Poland/Europe Portugal/Europe Spain/Europe Sudan/Africa Sweden/Europe
    Thailand/Asia Uganda/Africa Vietnam/Asia Zambia/Africa South_Korea/Asia South_Africa/Africa
"""


def _table(text: str) -> dict[str, str]:
    return dict(fact.replace("_", " ").split("/") for fact in text.split())


FACTS = {
    "capital": _table(_CAPITALS),
    "language": _table(_LANGUAGES),
    "continent": _table(_CONTINENTS),
}
_CORRUPTION = "other_subject"


class _Fact(NamedTuple):
    relation: str
    template: str
    subject: str
    answer: str

    def text(self) -> str:
        return self.template.format(subject=self.subject)


def factual_recall(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    relation: Relation = "capital",
    prepend_bos: bool | None = None,
    equal_length: bool = True,
) -> Task:
    """n distinct prompts that ask for a fact about a country.

    The corrupted twin asks the same about another country of as many tokens, to which another
    answer belongs: the wrong one. relation: what is asked ("capital", "language", "continent"),
    or "all" of these. prepend_bos: None follows the tokenizer's policy. equal_length: use only
    the prompts of the commonest token length.

    Answers are one token each, subjects any number. ``meta["dropped"]`` names the answers that
    are not one token, and the prompts (with their length) that have no twin or another length.
    The metric is the logit difference of the answer and the wrong one at END.

    Raises ``ValueError`` when no two subjects align, when n is more than the distinct prompts
    that remain, and for tokenizers that end a prompt with a token of their own.
    """
    check_request(tokenizer, n, seed, prepend_bos, relation=(relation, *FACTS, "all"))
    facts = [
        _Fact(kind, template, *fact)
        for kind in (FACTS if relation == "all" else (relation,))
        for template in TEMPLATES[kind]
        for fact in FACTS[kind].items()
    ]
    answers, dropped = single(tokenizer, dict.fromkeys(fact.answer for fact in facts))
    lengths = {
        fact: len(tokenizer.encode(fact.text(), add_bos=False))
        for fact in facts
        if fact.answer in answers
    }
    others = {
        fact: [
            other
            for other in lengths
            if (other.template, lengths[other]) == (fact.template, length)
            and other.answer != fact.answer
        ]
        for fact, length in lengths.items()
    }
    kept = [fact for fact in lengths if others[fact]]
    if not kept:
        raise ValueError(
            f"No template of factual recall has aligned positions with {tokenizer!r}: of "
            f"{len(facts)} facts {len(lengths)} have an answer of one token, and no two of these "
            "differ in their answer and agree in their length."
        )
    if equal_length:
        common = commonest({fact: lengths[fact] for fact in kept})
        kept = [fact for fact in kept if lengths[fact] == common]
    if n > len(kept):
        raise ValueError(
            f"n={n} is more than the {len(kept)} distinct prompts there are. Facts of unequal "
            "length (equal_length=False) or of other relations (relation='all') may add some."
        )
    rng = np.random.default_rng(seed)
    pairs = []
    for i in rng.choice(len(kept), n, replace=False):
        choices = others[kept[i]]
        pairs.append(_pair(kept[i], choices[rng.integers(len(choices))]))
    left_out = {fact.text(): length for fact, length in lengths.items() if fact not in kept}
    return build(
        "factual_recall", tokenizer, pairs, seed=seed, corruption=_CORRUPTION,
        prepend_bos=prepend_bos,
        meta={"relation": relation, "dropped": {"answers": dropped, "prompts": left_out}},
    )  # fmt: skip


def _pair(fact: _Fact, other: _Fact) -> Twins:
    clean, at = fill(fact.template, {"subject": fact.subject})
    start, stop = at["subject"]
    return Twins(
        clean,
        other.text(),
        {"subject_first": (start, start + 1), "subject": (stop - 1, stop)},
        answers=[f" {fact.answer}"],
        wrong=[f" {other.answer}"],
        about={
            "relation": fact.relation,
            "template": fact.template,
            "subject": fact.subject,
            "other_subject": other.subject,
        },
    )
