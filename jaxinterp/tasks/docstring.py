"""The next argument in a docstring (Heimersheim & Janiak 2023, "A circuit for Python docstrings in
a 4-layer attention-only transformer"; a task of ACDC, Conmy et al. 2023, arXiv:2304.14997).

The definition names the arguments A, B, C and D; the docstring has described A and B, and
":param" asks for C. The roles: A_def to D_def, A_doc, B_doc, and END, the last ":param".
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct
from jaxinterp.tasks.words import fill, single_kinds
from jaxinterp.tokens import Tokenizer

Corruption = Literal["swap_answer", "random_doc", "random"]

TEMPLATE = '''\
def {name}(self, {A_def}, {B_def}, {C_def}, {D_def}):
    """The {about} of the {thing}.

    :param {A_doc}: the {a1} {a2}
    :param {B_doc}: the {b1} {b2}
    :param'''
_WORDS = """
    load size files last oil column piece crime population unit dark port name value index count
    path file key data node list text line word code time date page user group item label color
    image point score level order state table query field event speed weight length width height
    price model signal sound light water fire stone market music river road city school
"""
WORDS = tuple(_WORDS.split())
_ARGUMENTS = ("A", "B", "C", "D")
_DESCRIPTIONS = ("name", "about", "thing", "a1", "a2", "b1", "b2")
_LEAST = len(_ARGUMENTS) + len(_DESCRIPTIONS) + len(_ARGUMENTS) + 2  # two more in the docstring


def docstring(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    corruption: Corruption = "swap_answer",
    prepend_bos: bool | None = None,
) -> Task:
    """n distinct docstring prompts; the answer is the third argument, C.

    corruption: "swap_answer" exchanges C and D in the definition (the answer flips; the first
    difference is late), "random_doc" puts other words for A and B in the docstring (nothing
    tells how far the list has come), "random" other words for all arguments, in definition and
    docstring alike (the paper's; nothing names the answer). prepend_bos: None follows the
    tokenizer's policy. All prompts have one length.

    Arguments and descriptions are random nouns of one token each; ``meta["dropped"]`` names
    those that are not. The metric is the logit difference of C and D at END.

    Raises ``ValueError`` when too few words remain, when n is more than half of the distinct
    prompts there are, and for tokenizers that end a prompt with a token of their own.
    """
    check_request(
        tokenizer, n, seed, prepend_bos,
        corruption=(corruption, "swap_answer", "random_doc", "random"),
    )  # fmt: skip
    words, dropped = single_kinds(tokenizer, "docstring", {"words": WORDS}, {"words": _LEAST})
    rng = np.random.default_rng(seed)
    nouns = words["words"]

    def make(_: int) -> Twins:
        return _pair([nouns[i] for i in rng.choice(len(nouns), _LEAST, replace=False)], corruption)

    possible = len(nouns) * (len(nouns) - 1) * (len(nouns) - 2)  # and more
    return build(
        "docstring", tokenizer, distinct(n, possible, make), seed=seed, corruption=corruption,
        prepend_bos=prepend_bos, meta={"dropped": dropped},
    )  # fmt: skip


def _pair(words: list[str], corruption: str) -> Twins:
    """A prompt made of `_LEAST` words."""
    words = list(words)
    fields = {field: words.pop() for field in _DESCRIPTIONS}
    names = {argument: words.pop() for argument in _ARGUMENTS}
    fields |= {f"{argument}_def": name for argument, name in names.items()}
    fields |= {f"{argument}_doc": names[argument] for argument in "AB"}
    changed = dict(fields)
    if corruption == "swap_answer":
        changed |= {"C_def": names["D"], "D_def": names["C"]}
    else:
        changed |= {f"{argument}_doc": words.pop() for argument in "AB"}
    if corruption == "random":
        changed |= {f"{argument}_def": words.pop() for argument in _ARGUMENTS}
    clean, at = fill(TEMPLATE, fields)
    return Twins(
        clean,
        fill(TEMPLATE, changed)[0],
        {role: span for role, span in at.items() if role.endswith(("_def", "_doc"))},
        answers=[f" {names['C']}"],
        wrong=[f" {names['D']}"],
        about=names,
    )
