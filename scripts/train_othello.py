"""Train the Othello model that is shipped: the next move of random legal games on a 6x6 board.

    python scripts/train_othello.py --out weights/othello-6x6

A causal transformer sees moves and nothing else: no board, no rules (Li et al. 2023,
arXiv:2210.13382). Every step's games are drawn anew from the seed and the step; held-out games come
from another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp.algorithmic import othello
from jaxinterp.loading.shipped import ship
from jaxinterp.training import train

TRAINED, HELD_OUT = 0, 1  # streams of games
CONFIG = ji.Config(
    n_layers=6, d_model=128, n_heads=8, d_head=16, d_mlp=512, vocab_size=othello.SQUARES,
    n_ctx=othello.MOVES - 1, positions="learned", norm="layer", act="gelu_tanh", gated=False,
    bias_qkv=True, bias_o=True, bias_mlp=True,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--games", type=int, default=256, help="a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at its peak")
    parser.add_argument("--held-out", type=int, default=4000, help="games")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/train_othello"))
    parser.add_argument("--out", type=Path, default=Path("weights/othello-6x6"))
    args = parser.parse_args()
    began, start = time.perf_counter(), started(args.seed)
    floor = measured(start, 1000, args.seed)["floor"]
    with tqdm(total=args.steps, desc="training", unit=" steps") as bar:

        def tell(step: int, values: Any) -> None:
            bar.update(step + 1 - bar.n)
            bar.set_postfix({"loss above the floor": f"{float(values['loss']) - floor:.3f}"})

        model = train(
            start, functools.partial(batch, seed=args.seed, n=args.games), loss,
            optimizer(args.steps, args.rate), steps=args.steps, folder=args.folder, on_step=tell,
        ).model  # fmt: skip
    seconds = time.perf_counter() - began
    metrics = measured(model, args.held_out, args.seed)
    card = ship(
        args.out, model,
        description="Predicts the next move of random legal games of Othello on a 6x6 board; a "
        "token is the square played (row by row, from 0), and passes have none. Its stream holds "
        "the board, from the side of the player to move.",
        data=f"Random legal games of jaxinterp.algorithmic.othello, {args.games} new ones a step; "
        f"measured on {args.held_out} others.",
        recipe=f"python scripts/train_othello.py --steps {args.steps} --games {args.games} "
        f"--rate {args.rate:g} --seed {args.seed}",
        seed=args.seed, steps=args.steps,
        compute={
            "seconds": round(seconds), "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.default_backend()}",
        },
        metrics=metrics,
    )  # fmt: skip
    print(card.markdown())


def started(seed: int) -> ji.Model:
    """The model before training; embeddings begin small, as in GPT-2."""
    model = ji.init(CONFIG, jax.random.key(seed))
    embed = jax.tree.map(lambda W: 0.1 * W, model.params.embed)
    return model.replace(params=model.params.replace(embed=embed), name="othello-6x6")


def batch(step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray]:
    """The prompts of a step, and the move [n 31] that follows each of theirs (-1: none)."""
    moves = othello.random_games(n, (TRAINED, seed, step))
    return othello.as_prompts(moves[:, :-1]), moves[:, 1:]


def loss(model: ji.Model, batch: tuple[Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the next move, in nats."""
    tokens, following = batch
    log_p = jax.nn.log_softmax(ji.forward(model, tokens).logits)
    said = jnp.take_along_axis(log_p, following.clip(0)[..., None], 2)[..., 0]
    value = -jnp.where(following >= 0, said, 0).sum() / (following >= 0).sum()
    return value, {"loss": value}


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    """AdamW, warmed up and then lowered along a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, steps // 10), steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )


def measured(model: ji.Model, n: int, seed: int) -> dict[str, float]:
    """On n held-out games: how legal predictions are, and the loss beside its floor.

    legal: share of places at which the likeliest move is legal; illegal_mass: mean probability of
    all illegal moves; loss, and floor (the loss of a player who knows the legal moves), in nats.
    """
    moves = othello.random_games(n, (HELD_OUT, seed))
    legal, following = othello.replay(moves).legal[:, :-1], moves[:, 1:]
    log_p = np.concatenate([
        np.asarray(jax.nn.log_softmax(ji.forward(model, othello.as_prompts(part[:, :-1])).logits))
        for part in np.array_split(moves, -(-n // 200))
    ])  # fmt: skip
    at = following >= 0
    log_p, legal, following = log_p[at].astype(np.float64), legal[at], following[at]
    rows = np.arange(len(log_p))
    return {
        "legal": float(legal[rows, log_p.argmax(1)].mean()),
        "illegal_mass": float(np.where(legal, 0, np.exp(log_p)).sum(1).mean()),
        "loss": float(-log_p[rows, following].mean()),
        "floor": float(np.log(legal.sum(1)).mean()),
    }


if __name__ == "__main__":
    main()
