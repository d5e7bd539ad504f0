"""Multiple choice: the letter of the right option (Lieberum et al. 2023, arXiv:2307.09458;
Wiegreffe et al. 2024, arXiv:2407.15018).

"The hat is red. What color is the hat?\\nA. blue\\nB. red\\n...Answer:" -> " B". What is asked
stands in the prompt, so that no knowledge is needed but how to answer with a letter. The roles:
fact (the color as stated), letter and option (of the right answer), wrong_letter and
wrong_option (where the corrupted prompt holds it), and END.
"""

from __future__ import annotations

import numpy as np

from jaxinterp.checks import MANY, whole_number
from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct
from jaxinterp.tasks.words import Span, fill, single_kinds
from jaxinterp.tokens import Tokenizer

LETTERS = "ABCD"
COLORS = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple",
    "gray", "silver",
)  # fmt: skip
OBJECTS = (
    "hat", "car", "box", "bag", "cup", "book", "door", "chair", "house", "shirt", "ball", "coat",
    "phone", "table", "flag", "boat", "bird", "pen", "wall", "truck",
)  # fmt: skip
_CORRUPTION = "move_answer"


def multiple_choice(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    choices: int = 4,
    shots: int = 1,
    prepend_bos: bool | None = None,
) -> Task:
    """n distinct questions with ``choices`` lettered options, the right letter taking turns.

    The corrupted twin exchanges the right option with another one, whose letter is then right:
    two tokens differ, and the answer flips. choices: 2 to 4. shots: solved questions before
    the one that is asked. prepend_bos: None follows the tokenizer's policy. All prompts have
    one length.

    Colors and objects are one token each; ``meta["dropped"]`` names those that are not. The
    metric is the logit difference of the right letter and the one that is right in the
    corrupted prompt, at END.

    Raises ``ValueError`` for other numbers of choices or shots, when too few colors, objects or
    letters remain, when n is more than half of the distinct prompts there are, and for
    tokenizers that end a prompt with a token of their own.
    """
    check_request(tokenizer, n, seed, prepend_bos, choices=(choices, 2, 3, 4))
    whole_number("shots", shots, 0, MANY)
    letters = LETTERS[:choices]
    words, dropped = single_kinds(
        tokenizer, "multiple choice", {"colors": COLORS, "objects": OBJECTS, "letters": letters},
        {"colors": choices, "objects": shots + 1, "letters": choices},
    )  # fmt: skip
    colors, objects = words["colors"], words["objects"]
    rng = np.random.default_rng(seed)

    def question(thing: str, right: int) -> tuple[str, dict[str, Span], list[str]]:
        drawn = [colors[j] for j in rng.choice(len(colors), choices, replace=False)]
        return *_question(thing, drawn, drawn[right]), drawn

    def make(i: int) -> Twins:
        things = [objects[j] for j in rng.choice(len(objects), shots + 1, replace=False)]
        before = ""
        for thing in things[1:]:
            right = int(rng.integers(choices))
            before += f"{question(thing, right)[0]} {letters[right]}\n\n"
        right = i % choices
        wrong = (right + int(rng.integers(1, choices))) % choices
        text, at, drawn = question(things[0], right)
        moved = list(drawn)
        moved[right], moved[wrong] = drawn[wrong], drawn[right]
        roles = {
            "fact": at["fact"],
            "letter": at[f"letter{right}"],
            "option": at[f"option{right}"],
            "wrong_letter": at[f"letter{wrong}"],
            "wrong_option": at[f"option{wrong}"],
        }
        return Twins(
            before + text,
            before + _question(things[0], moved, drawn[right])[0],
            {role: (len(before) + a, len(before) + b) for role, (a, b) in roles.items()},
            answers=[f" {letters[right]}"],
            wrong=[f" {letters[wrong]}"],
            about={"object": things[0], "color": drawn[right], "letter": letters[right]},
        )

    possible = len(objects) * len(colors) * (len(colors) - 1) * choices  # and more
    return build(
        "multiple_choice", tokenizer, distinct(n, possible, make), seed=seed,
        corruption=_CORRUPTION, prepend_bos=prepend_bos,
        meta={"choices": choices, "shots": shots, "dropped": dropped},
    )  # fmt: skip


def _question(thing: str, options: list[str], color: str) -> tuple[str, dict[str, Span]]:
    """The question as it is asked, and the characters of its fact, letters and options."""
    template = "The {thing} is {fact}. What color is the {thing}?\n"
    words = {"thing": thing, "fact": color}
    for i, option in enumerate(options):
        template += f"{{letter{i}}}. {{option{i}}}\n"
        words |= {f"letter{i}": LETTERS[i], f"option{i}": option}
    return fill(template + "Answer:", words)
