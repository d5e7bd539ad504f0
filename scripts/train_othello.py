"""Train the shipped model of Othello: the next move of random legal games on a 6x6 board.

    python scripts/train_othello.py --out weights/othello-6x6

A causal transformer sees moves and no board (Li et al. 2023, arXiv:2210.13382). Every legal move is
as likely to come next, and that distribution is its target at every move: the loss of many games
that go on from there in place of one, which would take many times the steps. Every step's games are
drawn anew from the seed and the step (`jaxinterp.algorithmic.othello`); held-out ones come from
another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import othello
from jaxinterp.algorithmic.prompts import as_prompts
from jaxinterp.loading.shipped import ship

NAME = "othello-6x6"
CONFIG = ji.Config(
    n_layers=6, d_model=128, n_heads=4, d_head=32, d_mlp=512, vocab_size=othello.SQUARES,
    n_ctx=othello.MOVES - 1, positions="learned", norm="layer", act="relu", gated=False,
    bias_qkv=True, bias_o=True, bias_mlp=True,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=9000)
    parser.add_argument("--games", type=int, default=64, help="a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    args = parser.parse_args()
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME, 0.1),
        functools.partial(batch, seed=args.seed, n=args.games), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay),
        shown=("loss", "above_floor"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=othello.tokenizer(),
        description="Predicts the next move of random legal games of Othello on a 6x6 board. A "
        "token is the square played; passes have none. Its stream holds the board, from the side "
        "of the player to move.",
        data=f"Random legal games of jaxinterp.algorithmic.othello, {args.games} new ones a step, "
        "the target of each move all that are legal after it; measured on 4000 others.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray]:
    """The prompts of a step, and the legal moves bool [n 31 36] after each of theirs."""
    moves = othello.random_games(n, (training_run.TRAINED, seed, step))
    goes_on = moves[:, 1:, None] >= 0
    return as_prompts(moves[:, :-1]), othello.replay(moves).legal[:, :-1] & goes_on


def loss(model: ji.Model, batch: tuple[Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the next move in nats; beside it how far above the least that is."""
    tokens, legal = batch
    log_p = jax.nn.log_softmax(ji.forward(model, tokens).logits)
    count = legal.sum(-1)
    of_each = -jnp.where(legal, log_p, 0).sum(-1) / jnp.maximum(count, 1)
    moves = (count > 0).sum()
    value, least = of_each.sum() / moves, jnp.log(jnp.maximum(count, 1)).sum() / moves
    return value, {"above_floor": value - least}


def measured(model: ji.Model, seed: int, n: int = 4000) -> dict[str, float]:
    """On n held-out games: how legal predictions are, and the loss beside its floor.

    Shares of places: legal, the likeliest move is legal; legal_sets, the k likeliest are the k
    legal ones. illegal_mass: mean probability of all illegal moves. loss, and floor (the loss of
    who knows what is legal, every legal move being as likely), in nats.
    """
    moves = othello.random_games(n, (training_run.HELD_OUT, seed))
    legal, following = othello.replay(moves).legal[:, :-1], moves[:, 1:]
    log_p = np.concatenate([
        np.asarray(jax.nn.log_softmax(ji.forward(model, as_prompts(part)).logits))
        for part in training_run.in_parts(moves[:, :-1], 250)
    ])  # fmt: skip
    at = following >= 0
    log_p, legal, following = log_p[at].astype(np.float64), legal[at], following[at]
    rows, count = np.arange(len(log_p)), legal.sum(1)
    ranked = np.take_along_axis(legal, np.argsort(-log_p, 1), 1)
    return {
        "legal": float(ranked[:, 0].mean()),
        "legal_sets": float((ranked[:, ::-1].argmax(1) == othello.SQUARES - count).mean()),
        "illegal_mass": float(np.where(legal, 0, np.exp(log_p)).sum(1).mean()),
        "loss": float(-log_p[rows, following].mean()),
        "floor": float(np.log(count).mean()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
