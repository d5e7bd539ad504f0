"""An instruction that the model follows: asked for a list, it begins with "1", along one direction.

    python scripts/instruction_study.py --out docs/mechanisms/instruction

The counterpart of refusal (Arditi et al. 2024, arXiv:2406.11717), which this model does not do: the
direction is the difference of means, at the last position of the chat format, between requests for
a list and for prose on the same subjects. Its layer is the first at which moving along it decides
how the requests it was made of are answered. On other requests about other subjects it is then
erased, and moved both ways, at that position alone. Ends with a claim.
"""

from __future__ import annotations

from typing import Any

import chapters
import mechanism
import numpy as np
from difference import Difference, likeliest, way_of

import jaxinterp as ji
from jaxinterp.model import as_tokens

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
MADE_OF = (
    ("Make a numbered list of things to know about {}.", "Write a sentence about {}."),
    ("Give me a list of five facts about {}.", "Give me a short description of {}."),
)
TESTED = (
    ("Name four things about {}, numbered.", "Explain {} to me in one paragraph."),
    ("Write a numbered list of steps to learn about {}.", "Write a short story about {}."),
)
SUBJECTS = (
    "dogs", "the sea", "music", "Paris", "winter", "bread", "trees", "the moon", "football",
    "horses", "books", "coffee", "trains", "gardens", "rivers", "cheese", "painting", "Japan",
    "bicycles", "rain", "bees", "dance", "castles", "salt", "mountains", "chess", "tea", "boats",
    "summer", "Rome", "cats", "films", "roses", "the sun", "school", "farms", "snow", "apples",
    "bridges", "stars",
)  # fmt: skip
IN_FRENCH = "Answer in French. What do you know about {}?"
LETTERS = ("ABC", "XYZ", "KLM", "PQR", "DEF", "STU", "GHJ", "MNO", "BDF", "RTV", "CEG", "HKN")
COUNTED = "{0}1 {1}2 {2}3 {0}1 {1}2 {2}3 {0}"  # "1" follows, and no list was asked for
ENOUGH = 0.75  # of the way between the two kinds, by which the layer is chosen
DRAWS = 20


def main() -> None:
    args = mechanism.parser(__doc__, "instruction", "smollm2-135m-instruct", n=40).parse_args()
    model, tokenizer = ji.load(args.model)
    order = np.random.default_rng(args.seed).permutation(len(SUBJECTS))
    known, others = (np.asarray(SUBJECTS)[half] for half in np.array_split(order, 2))
    made_of, tested = (
        [tokenizer(texts) for texts in requests(*some)]
        for some in ((MADE_OF, known), (TESTED, others))
    )
    difference = Difference.of(model, *made_of)
    begins = ji.log_prob(tokenizer.single_token("1"))
    lists, prose = (np.asarray(ji.evaluate(begins, model, tokens)) for tokens in made_of)
    ways = np.stack([
        way_of(model, tokens, difference.moved_after_each(end(tokens), sign), begins, *gap)
        for tokens, sign, gap in zip(made_of, (-1, 1), ((lists, prose), (prose, lists)),
                                    strict=True)
    ])  # fmt: skip
    decides = ways.min(0) > ENOUGH
    if not decides.any():
        raise SystemExit(f"No layer's direction goes {ENOUGH:.0%} of the way.")
    layer = int(decides.argmax())
    asked, plain = (tokens[: args.n] for tokens in tested)
    claim = ji.Claim(
        f"{model.name} begins a list when asked for one by a direction at the end of the prompt.",
        model, task='the answer to a request for a list begins with "1"',
        dataset=f"{len(asked)} requests for a list and as many for prose, in other words and about "
        f"other subjects than the {len(made_of[0])} of each that the direction was made of",
        components=[f"resid_post of layer {layer} at the last position, one direction"],
        experiments=[
            *experiments(asked, plain, difference, layer, begins, args.seed),
            *elsewhere(model, tokenizer, others, difference, layer, begins),
        ],
        limits=[
            "One instruction, and the first token of what follows: a few continuations in the "
            "report are all that says anything of the rest.",
            "Which heads bring the instruction to the end of the prompt was not tested here.",
            "Erasing what is linear at one place leaves it elsewhere: later layers may fetch it "
            "again.",
        ],
    ).run(model)  # fmt: skip
    rows = [[f"{i}", *(f"{way[i]:.2f}" for way in ways)]
            for i in sorted({*range(0, len(decides), 4), layer})]  # fmt: skip
    mechanism.state(args, claim, [
        f"Requests such as `{MADE_OF[0][0].format(known[0])}` against `"
        f"{MADE_OF[0][1].format(known[0])}`: how far of the way between the two kinds the answer "
        'goes (mean log p("1")), moved by the difference of their means at the end of the prompt, '
        f"on the requests it was made of; the first layer above {ENOUGH} both ways is {layer}:", "",
        *mechanism.table(["after layer", "list to prose", "prose to list"], rows), "",
        "Continuations of other requests (greedy), moved once, at the end of the prompt:", "",
        *continuations(model, tokenizer, requests(TESTED, others), difference, layer),
    ])  # fmt: skip


def requests(templates: Any, subjects: Any) -> tuple[list[str], list[str]]:
    """Prompts in the chat format that ask for a list, and for prose."""
    lists, prose = (
        [CHAT.format(pair[kind].format(s)) for pair in templates for s in subjects]
        for kind in (0, 1)
    )
    return lists, prose


def end(tokens: ji.Tokens) -> np.ndarray:
    """The last position [B] of each prompt."""
    return np.asarray(tokens.lengths) - 1


def experiments(
    asked: Any, plain: Any, known: Difference, layer: int, begins: ji.Metric, seed: int
) -> list[ji.Experiment]:
    lists, prose = end(asked), end(plain)
    return [
        ji.Experiment("moved to prose after each layer", "localization", asked,
                      known.moved_after_each(lists, -1), begins, grid=True),
        ji.Experiment("asked for a list, moved to prose", "effect", asked,
                      known.moved(lists, layer, -1), begins),
        ji.Experiment("asked for prose, moved to a list", "effect", plain,
                      known.moved(prose, layer), begins),
        ji.Experiment("asked for a list, the difference erased", "effect", asked,
                      known.erased(lists, layer), begins),
        ji.Experiment(f"a list, as far along random directions, {DRAWS} draws", "control", asked,
                      known.random_moves(lists, layer, DRAWS, seed), begins, grid=True),
        ji.Experiment(f"prose, as far along random directions, {DRAWS} draws", "control", plain,
                      known.random_moves(prose, layer, DRAWS, seed), begins, grid=True),
        ji.Experiment(f"a list, random erasures, {DRAWS} draws", "control", asked,
                      known.random_erasures(lists, layer, DRAWS, seed), begins, grid=True),
    ]  # fmt: skip


def elsewhere(
    model: ji.Model, tokenizer: Any, subjects: Any, known: Difference, layer: int,
    begins: ji.Metric,
) -> list[ji.Experiment]:  # fmt: skip
    """What should be left alone by the erasure, and by the move, at the end of other prompts."""
    french = tokenizer([CHAT.format(IN_FRENCH.format(s)) for s in subjects])
    counted = tokenizer([COUNTED.format(*letters) for letters in LETTERS])
    blocks = as_tokens(chapters.unrelated(tokenizer, 24))

    prompts = (
        ("asked for French", french, likeliest(model, french), 0.1,
         "Of the token that the model finds likeliest."),
        ('a "1" that no list calls for', counted, begins, 0.5, "Such as A1 B2 C3 A1 B2 C3 A."),
        ("unrelated text", blocks, likeliest(model, blocks), 0.1,
         "Blocks of 32 tokens of WikiText-2, at their end."),
    )  # fmt: skip
    return [
        ji.Experiment(f"{what}, {name}", "specificity", tokens, edit, metric, margin=margin,
                      note=note)
        for name, tokens, metric, margin, note in prompts
        for what, edit in (("erased", known.erased(end(tokens), layer)),
                           ("moved to prose", known.moved(end(tokens), layer, -1)))
    ]  # fmt: skip


def continuations(
    model: ji.Model, tokenizer: Any, tested: Any, known: Difference, layer: int
) -> list[str]:
    """Of the first request of each form, without and with the move to the other kind."""
    rows = []
    for texts, sign, name in zip(tested, (-1, 1), ("to prose", "to a list"), strict=True):
        some = texts[:: len(texts) // len(TESTED)]
        tokens = tokenizer(some)
        edit = known.moved(end(tokens), layer, sign)
        made = [
            ji.generate(model, tokens, 16, interventions=e, stop=tokenizer.ends).texts(tokenizer)
            for e in ((), edit)
        ]
        for i, text in enumerate(some):
            said = (f"`{new[i]!r}`" for new in made)
            request = text.splitlines()[1].removesuffix("<|im_end|>")
            rows.append([f"`{request}`", name, *said])
    return mechanism.table(["request", "moved", "without", "with"], rows)


if __name__ == "__main__":
    main()
