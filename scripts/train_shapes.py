"""Train the shipped vision transformer: simple shapes in small grey images.

    python scripts/train_shapes.py --out weights/shapes-vit

Two layers that read both ways, on 36 patches; the answer is read at the empty patch before them.
Every step's images are drawn anew from the seed and the step (`jaxinterp.algorithmic.shapes`);
held-out ones come from another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import shapes
from jaxinterp.loading.shipped import ship

NAME = "shapes-vit"
CONFIG = ji.Config(
    n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=128, vocab_size=shapes.WIDTH,
    n_ctx=shapes.LENGTH, n_outputs=len(shapes.NAMES), causal=False, positions="learned",
    norm="layer", act="relu", gated=False, bias_qkv=True, bias_o=True, bias_mlp=True,
    bias_head=True,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=4000)
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    args = parser.parse_args()
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME, 0.25),
        functools.partial(batch, seed=args.seed, n=args.batch), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay), shown=("loss", "accuracy"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model,
        description="Tells six shapes (square, diamond, plus, saltire, circle, triangle) in grey "
        "images of 24 x 24 pixels, read as patches of 4 x 4: a vision transformer of two layers. "
        "Its inputs are values, [image, 37, 16] (jaxinterp.algorithmic.shapes.patches).",
        data=f"Images of jaxinterp.algorithmic.shapes, {args.batch} new ones a step.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray]:
    """The images of a step and their classes [n]."""
    drawn = shapes.images(n, (training_run.TRAINED, seed, step))
    return drawn.tokens, drawn.labels


def loss(model: ji.Model, batch: tuple[Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the classes in nats, and how often they are right."""
    tokens, labels = batch
    first = np.zeros((len(tokens), 1), np.int32)
    return training_run.answer_loss(training_run.logits_at(model, tokens, first)[:, 0], labels)


def measured(model: ji.Model, seed: int, n: int = 3000) -> dict[str, float]:
    """On held-out images: accuracy and loss in nats, and each class's accuracy."""
    held = shapes.images(n, (training_run.HELD_OUT, seed))
    logits = np.concatenate([
        np.asarray(ji.forward(model, shapes.patches(part)).logits[:, 0])
        for part in training_run.in_parts(held.pixels, 500)
    ])  # fmt: skip
    value, seen = training_run.answer_loss(logits, held.labels)
    right = logits.argmax(1) == held.labels
    return {
        "accuracy": float(seen["accuracy"]), "loss": float(value),
        **{f"accuracy_{name}": float(right[held.labels == i].mean())
           for i, name in enumerate(shapes.NAMES)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
