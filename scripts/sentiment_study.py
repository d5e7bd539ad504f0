"""Sentiment: a direction from contrast pairs, what steering along it does, and what else it does.

    python scripts/sentiment_study.py --out runs/sentiment

The direction: what "The film was wonderful." has and "The film was terrible." lacks, by layer. It
is probed (other adjectives), projected out (what is left of the model's own verdict?), and added to
neutral prompts: layer and coefficient are chosen on one half of them under a limit on how much
unrelated text may change, and reported on the other half, beside random directions and prompting.
"""

from __future__ import annotations

import chapters
import numpy as np

import jaxinterp as ji
from jaxinterp import directions
from jaxinterp.tasks.words import single

GOOD = "wonderful great excellent fantastic amazing brilliant beautiful perfect lovely superb"
BAD = "terrible awful horrible dreadful bad poor boring disgusting disappointing worst"
SEEN = ("film", "book", "meal", "hotel", "concert", "play", "song", "trip")
UNSEEN = (
    "restaurant", "game", "phone", "museum", "show", "lecture", "garden", "party", "camera",
    "course", "store", "park", "novel", "movie", "car", "service",
)  # fmt: skip
STATED = "The {noun} was {word}."
ASKED = "The {noun} was {word}. In one word, the {noun} was"
NEUTRAL = (
    "Yesterday we went to see the {noun}. In one word, the {noun} was",
    "My friend told me about the {noun}. In one word, the {noun} was",
)
TOLD = "Everything is wonderful and I love it all. "


def main() -> None:
    args = chapters.options(__doc__, "runs/sentiment")
    model, tokenizer = ji.load(args.model)
    good, bad = (single(tokenizer, words.split())[0] for words in (GOOD, BAD))
    pairs = list(zip(good, bad, strict=False))

    def verdict(texts: list[str]):
        """The mean logit of the positive adjectives minus the negative ones', at the end."""
        ids = [[tokenizer.single_token(f" {w}") for w in words] for words in (good, bad)]
        return ji.logit_diff(*(np.tile(each, (len(texts), 1)) for each in ids))

    stated = [(noun, pair) for noun in SEEN for pair in pairs]
    X = np.stack([
        ji.collect(model, tokenizer([STATED.format(noun=n, word=p[i]) for n, p in stated]))
        for i in (0, 1)
    ])  # fmt: skip
    direction = directions.from_pairs(X[0, 1:], X[1, 1:])  # what each block leaves
    lines = [f"# Sentiment in {model.name}", ""]
    lines += chapters.decodable(
        args.out, np.concatenate(list(X), 1), np.repeat(["positive", "negative"], len(stated)),
        np.tile([pairs.index(p) for _, p in stated], 2),
        np.array([p[i] for i in (0, 1) for _, p in stated]),
        f"{len(stated)} pairs such as `{STATED.format(noun='film', word='wonderful')}`, read at "
        "the full stop, adjectives kept whole", args.seed,
    )  # fmt: skip
    asked = [(noun, word) for noun in UNSEEN[:8] for pair in pairs for word in pair]
    texts = [ASKED.format(noun=n, word=w) for n, w in asked]
    lines += chapters.used(
        model, tokenizer, tokenizer(texts), np.array([1 if w in good else -1 for _, w in asked]),
        verdict(texts), direction,
        f"Positive against negative adjectives to come, after `{texts[0]}`, with nouns the "
        "direction was not made of", args.placebos, args.seed,
    )  # fmt: skip
    neutral = [text.format(noun=noun) for text in NEUTRAL for noun in UNSEEN]
    order = np.random.default_rng(args.seed).permutation(len(neutral))
    lines += chapters.steered(
        model, tokenizer, [[neutral[i] for i in part] for part in np.array_split(order, 2)],
        verdict, direction, out=args.out, placebos=args.placebos, texts=args.texts, seed=args.seed,
        prompting=(f"`{TOLD.strip()}` before the prompt", lambda text: TOLD + text),
    )  # fmt: skip
    lines += [
        "## What this says, and what it does not", "",
        "The probe says that the polarity of an adjective can be read linearly at the full stop. "
        "Projecting the direction out says how much of the model's own verdict passes along it, "
        "beside random ones, at the layers whose loss of unrelated text stays. Steering says how "
        "far adding it moves the verdict beyond random directions of the same length. None says "
        "that the direction means sentiment alone, nor that it does so in other text.", "",
    ]  # fmt: skip
    (args.out / "report.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
