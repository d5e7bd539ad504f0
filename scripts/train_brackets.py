"""Train the shipped classifier of balanced brackets: an encoder of two layers that reads both ways.

    python scripts/train_brackets.py --out weights/brackets-2l

The answer is read at the first position. Every step's strings are drawn anew from the seed and the
step (`jaxinterp.algorithmic.brackets`), most of the unbalanced ones nearly balanced; held-out ones
come from another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import brackets
from jaxinterp.algorithmic.prompts import as_prompts
from jaxinterp.loading.shipped import ship

NAME = "brackets-2l"
CONFIG = ji.Config(
    n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=128, vocab_size=len(brackets.TOKENS),
    n_ctx=brackets.CONTEXT, causal=False, positions="learned", norm="layer", act="gelu_tanh",
    gated=False, bias_qkv=True, bias_o=True, bias_mlp=True,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=4000)
    parser.add_argument("--batch", type=int, default=256, help="strings a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    args = parser.parse_args()
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME, 0.1),
        functools.partial(batch, seed=args.seed, n=args.batch), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay), shown=("loss", "accuracy"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=brackets.tokenizer(),
        description="Says whether up to 40 brackets are balanced: an encoder of two layers that "
        'reads both ways; the answer, "balanced" or "unbalanced", is read at the first position.',
        data=f"Strings of jaxinterp.algorithmic.brackets, {args.batch} new ones a step.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray]:
    """The strings of a step and their answers [n]."""
    drawn = brackets.strings(n, (training_run.TRAINED, seed, step))
    return as_prompts(drawn.ids), drawn.answers


def loss(model: ji.Model, batch: tuple[Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the answers in nats, and how often they are right."""
    tokens, answers = batch
    first = np.zeros((len(tokens), 1), np.int32)
    logits = training_run.logits_at(model, tokens, first)[:, 0]
    return training_run.answer_loss(logits, answers)


def measured(model: ji.Model, seed: int, n: int = 4000) -> dict[str, float]:
    """On held-out strings: loss in nats and accuracy, and accuracy on n of each kind."""
    value, seen = judged(model, brackets.strings(n, (training_run.HELD_OUT, seed)))
    out = {"accuracy": float(seen["accuracy"]), "loss": float(value)}
    for i, kind in enumerate(brackets.KINDS):
        _, seen = judged(model, brackets.strings(n, (training_run.HELD_OUT, seed, i), kind))
        out[f"accuracy_{kind}"] = float(seen["accuracy"])
    return out


def judged(model: ji.Model, held: brackets.Strings) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and accuracy over strings, by the plain forward pass."""
    tokens = as_prompts(held.ids)
    return training_run.answer_loss(ji.forward(model, tokens).logits[:, 0], held.answers)


if __name__ == "__main__":
    main()
