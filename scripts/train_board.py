"""Train the shipped model of a board game: the next move of random legal games of Ataxx, 6x6.

    python scripts/train_board.py --out weights/ataxx-6x6

A causal transformer sees moves and no board (Li et al. 2023, arXiv:2210.13382). Every legal move is
as likely to come next, and that distribution is its target at every move: the loss of many games
that go on from there in place of one, which would take many times the steps. Every step's games are
drawn anew from the seed and the step (`jaxinterp.algorithmic.boards`); held-out ones come from
another stream. A killed run goes on from --folder. --game othello trains one of Othello, which is
much harder to learn: what stands there can hang on all moves before.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import boards
from jaxinterp.algorithmic.prompts import as_prompts
from jaxinterp.loading.shipped import ship

CONFIG = ji.Config(
    n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, vocab_size=boards.SQUARES,
    n_ctx=31, positions="learned", norm="layer", act="relu", gated=False,
    bias_qkv=True, bias_o=True, bias_mlp=True,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, None, steps=10000)
    parser.add_argument("--game", choices=boards.GAMES, default="ataxx")
    parser.add_argument("--layers", type=int, default=CONFIG.n_layers)
    parser.add_argument("--per-step", type=int, default=32, help="games")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's at its peak")
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    args = parser.parse_args()
    game = boards.GAMES[args.game]
    name = f"{game.name}-6x6"
    args.out, args.folder = args.out or Path("weights") / name, args.folder or Path("runs") / name
    trained, compute = training_run.run(
        args, training_run.started(CONFIG.replace(n_layers=args.layers), args.seed, name, 0.1),
        functools.partial(batch, game, seed=args.seed, n=args.per_step), loss,
        training_run.muon(args.steps, args.rate, args.adam_rate, args.weight_decay),
        shown=("loss", "above_floor"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=game.tokenizer(),
        description=f"Predicts the next move of random legal games of {game.name.capitalize()} on "
        "a 6x6 board. A token is the square played. Its stream holds the board, from the side of "
        "the player to move.",
        data=f"Random legal games (jaxinterp.algorithmic.boards), {args.per_step} new ones a step, "
        "the target of each move all that are legal after it; measured on 4000 others.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, game, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(game: boards.Game, step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray]:
    """The prompts of a step, and the legal moves bool [n 31 36] after each of theirs."""
    moves = game.random_games(n, (training_run.TRAINED, seed, step))
    goes_on = moves[:, 1:, None] >= 0
    return as_prompts(moves[:, :-1]), game.replay(moves).legal[:, :-1] & goes_on


def loss(model: ji.Model, batch: tuple[Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the next move in nats; beside it how far above the least that is."""
    tokens, legal = batch
    log_p = jax.nn.log_softmax(ji.forward(model, tokens).logits)
    count = legal.sum(-1)
    of_each = -jnp.where(legal, log_p, 0).sum(-1) / jnp.maximum(count, 1)
    moves = (count > 0).sum()
    value, least = of_each.sum() / moves, jnp.log(jnp.maximum(count, 1)).sum() / moves
    return value, {"above_floor": value - least}


def measured(model: ji.Model, game: boards.Game, seed: int, n: int = 4000) -> dict[str, float]:
    """On n held-out games: how legal predictions are, and the loss beside its floor.

    Shares of places: legal, the likeliest move is legal; legal_sets, the k likeliest are the k
    legal ones. illegal_mass: mean probability of all illegal moves. loss, and floor (the loss of
    who knows what is legal, every legal move being as likely), in nats.
    """
    moves = game.random_games(n, (training_run.HELD_OUT, seed))
    legal, following = game.replay(moves).legal[:, :-1], moves[:, 1:]
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
        "legal_sets": float((ranked[:, ::-1].argmax(1) == boards.SQUARES - count).mean()),
        "illegal_mass": float(np.where(legal, 0, np.exp(log_p)).sum(1).mean()),
        "loss": float(-log_p[rows, following].mean()),
        "floor": float(np.log(count).mean()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
