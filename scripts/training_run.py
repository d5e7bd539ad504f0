"""What the scripts that train small models share: arguments, the run with its bar, its cost."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp.model import (
    Frame,
    as_tokens,
    block,
    embed,
    layer_at,
    make_context,
    run_layers,
    unembed,
)  # fmt: skip
from jaxinterp.model.taps import Tap
from jaxinterp.training import Trained, train

TRAINED, HELD_OUT = 0, 1  # streams of random numbers


def parser(doc: str, name: str | None, *, steps: int) -> argparse.ArgumentParser:
    """The arguments of every such script; ``name`` is the shipped model's, None where it is told
    by another argument."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    out, folder = (name and Path(parent) / name for parent in ("weights", "runs"))
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument(
        "--folder", type=Path, default=folder, help="where a killed run goes on from"
    )
    return parser


def run(
    args: argparse.Namespace,
    model: ji.Model,
    batch: Callable[[int], Any],
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    keep: Iterable[int] = (),
    shown: Iterable[str] = ("loss",),
) -> tuple[Trained, dict[str, Any]]:
    """Train with a bar that shows some of the loss's values; also what it cost, for the card."""
    resumed = args.folder.exists() and any(args.folder.iterdir())
    began = time.perf_counter()
    with tqdm(total=args.steps, desc="training", unit=" steps", mininterval=1) as bar:

        def tell(step: int, values: Any) -> None:
            bar.update(step + 1 - bar.n)
            bar.set_postfix({n: f"{float(values[n]):.3g}" for n in shown}, refresh=False)

        trained = train(
            model, batch, loss, optimizer, steps=args.steps, folder=args.folder, keep=tuple(keep),
            on_step=tell,
        )  # fmt: skip
    compute = {
        "seconds": round(time.perf_counter() - began), "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.default_backend()}",
    }  # fmt: skip
    return trained, compute | ({"resumed": "seconds are of the last part"} if resumed else {})


def recipe(args: argparse.Namespace) -> str:
    """The command that trains the same model again."""
    script = Path(sys.argv[0]).name
    given = {k: v for k, v in vars(args).items() if k not in ("out", "folder")}
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in given.items())
    return f"python scripts/{script} {options}"


def adamw(steps: int, rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW; the rate warms up over the first steps and falls along a cosine to 0."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, max(1, steps // 10)), steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=weight_decay)
    )


def muon(
    steps: int, rate: float, adam_rate: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for what the blocks multiply by, Adam for all else, under one
    schedule: it warms up and falls along a cosine to 0."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(50, max(1, steps // 10)), steps)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(rate), weight_decay=weight_decay, adam_b2=0.98,
            adam_learning_rate=schedule(adam_rate), muon_weight_dimension_numbers=matrices,
        ),
    )  # fmt: skip


def matrices(params: Any) -> Any:
    """Which axes of the blocks' weights are a matrix's: the last two, for every layer and head."""

    def axes(path: Any, W: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        if "blocks" in name and "W_" in name:
            return optax.contrib.MuonDimensionNumbers(W.ndim - 2, W.ndim - 1)
        return None

    return jax.tree_util.tree_map_with_path(axes, params)


def started(config: ji.Config, seed: int, name: str, embed: float = 1.0) -> ji.Model:
    """The model before training, embeddings times ``embed``."""
    model = ji.init(config, jax.random.key(seed))
    smaller = jax.tree.map(lambda W: embed * W, model.params.embed)
    return model.replace(params=model.params.replace(embed=smaller), name=name)


def logits_at(model: ji.Model, tokens: Any, columns: Any) -> jax.Array:
    """The logits [B R V] at a few columns [B R]: the last layer's queries and MLP run there alone.

    They are those of `jaxinterp.forward`, at a fraction of the work in training.
    """
    c, tokens = model.config, as_tokens(tokens)
    frame, context = Frame(tokens.positions), make_context(model, tokens)
    x, _ = embed(model, tokens)
    x, _ = run_layers(model, x, tokens, stop=c.n_layers - 1)
    last = layer_at(model, c.n_layers - 1)
    tap = Tap(c, (), (), context.sources, last.index)
    x, _ = block(c, last, x, context, tap, frame, read=columns)
    logits, _ = unembed(model, x, frame.read(columns))
    return logits


def next_token_losses(model: ji.Model, ids: Any) -> jax.Array:
    """The loss [B P-1] in nats of each token after the first."""
    ids = jnp.asarray(ids)
    log_p = jax.nn.log_softmax(ji.forward(model, ids).logits[:, :-1])
    return -jnp.take_along_axis(log_p, ids[:, 1:, None], 2)[..., 0]


def answer_loss(logits: jax.Array, answers: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss in nats, and how often the likeliest token is the answer."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    right = (logits.argmax(-1) == answers).astype(logits.dtype)
    return losses.mean(), {"accuracy": right.mean()}


def in_parts(values: Any, size: int) -> list[np.ndarray]:
    """An array in parts of at most ``size`` rows: what is measured at a time."""
    return np.array_split(values, -(-len(values) // size))
