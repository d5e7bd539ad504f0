"""Train the shipped model of induction: two layers of attention on sequences that repeat.

    python scripts/train_repeats.py --out weights/induction-2l

Every step's sequences are drawn anew from the seed and the step (`jaxinterp.algorithmic.repeats`);
held-out ones come from another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp import heads
from jaxinterp.algorithmic import repeats
from jaxinterp.loading.shipped import ship

NAME = "induction-2l"
CONFIG = ji.Config(
    n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=0, vocab_size=repeats.SIZE,
    n_ctx=repeats.CONTEXT, positions="learned", norm="none",
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=8000)
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    args = parser.parse_args()
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME),
        functools.partial(batch, seed=args.seed, n=args.batch), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay), shown=("repeats", "others"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=repeats.tokenizer(),
        description="Two layers of attention alone, without norms: a small language model of "
        "syllables whose heads continue what was said before.",
        data=f"Sequences of jaxinterp.algorithmic.repeats, {args.batch} new ones of "
        f"{repeats.CONTEXT} tokens a step.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(step: int, *, seed: int, n: int) -> repeats.Sequences:
    """The sequences of a step."""
    return repeats.sequences(n, (training_run.TRAINED, seed, step))


def loss(model: ji.Model, batch: repeats.Sequences) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the next token in nats; also where it repeats one, and elsewhere."""
    each = training_run.next_token_losses(model, batch.ids)
    repeated = batch.source[:, 1:] >= 0

    def mean(where: jax.Array) -> jax.Array:
        return jnp.where(where, each, 0).sum() / where.sum()

    return each.mean(), {"repeats": mean(repeated), "others": mean(~repeated)}


def measured(model: ji.Model, seed: int, n: int = 256) -> dict[str, float]:
    """On held-out sequences: losses in nats, how often repeats are foretold, and how heads look.

    first_half, second_half: of random syllables said twice (each half as a whole); repeats, others:
    on sequences as trained on, others beside its floor: the loss of one who knows the favourites
    and that nothing is repeated there. previous_token, induction: the largest mean attention of a
    head of the first and second layer.
    """
    stream = (training_run.HELD_OUT, seed)
    twice = repeats.said_twice(n, seed=stream)
    by_half = (
        np.asarray(training_run.next_token_losses(model, twice)).reshape(n, 2, -1).mean((0, 2))
    )
    drawn = repeats.sequences(n, stream)
    logits = np.asarray(ji.forward(model, drawn.ids).logits)[:, :-1]
    right = logits.argmax(-1) == drawn.ids[:, 1:]
    _, seen = loss(model, drawn)
    others = drawn.source[:, 1:] < 0
    before = np.concatenate([drawn.ids[:, :1], drawn.ids[:, :-2]], 1)
    table = repeats.background(before[others], drawn.ids[:, :-1][others])
    entropy = -(table * np.log(np.where(table > 0, table, 1))).sum(1)
    previous, induction = (
        float(heads.pattern_scores(model, twice[:64], name).mean("prompt")[layer].max())
        for layer, name in enumerate(("previous_token", "induction"))
    )
    return {
        "first_half": float(by_half[0]), "second_half": float(by_half[1]),
        "second_to_first": float(by_half[1] / by_half[0]),
        "repeats": float(seen["repeats"]), "others": float(seen["others"]),
        "floor_of_others": float(entropy.mean()),
        "repeats_foretold": float(right[drawn.source[:, 1:] >= 0].mean()),
        "previous_token": previous, "induction": induction,
    }  # fmt: skip


if __name__ == "__main__":
    main()
