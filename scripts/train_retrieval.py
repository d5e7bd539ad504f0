"""Train the shipped model of retrieval: from a key to its value, both drawn anew in every prompt.

    python scripts/train_retrieval.py --out weights/retrieval-2l

A causal transformer of two layers learns from the answers alone (four queries a prompt). Every
step's prompts are drawn anew from the seed and the step (`jaxinterp.algorithmic.retrieval`);
held-out ones come from another stream. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import retrieval
from jaxinterp.algorithmic.prompts import as_prompts
from jaxinterp.loading.shipped import ship

NAME = "retrieval-2l"
CONFIG = ji.Config(
    n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=128, vocab_size=len(retrieval.TOKENS),
    n_ctx=retrieval.CONTEXT,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=4000)
    parser.add_argument("--batch", type=int, default=128, help="prompts a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    args = parser.parse_args()
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME, 0.1),
        functools.partial(batch, seed=args.seed, n=args.batch), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay), shown=("loss", "accuracy"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=retrieval.tokenizer(),
        description="Looks a key up among pairs of keys and values given in the prompt, with "
        'distractors between them: after "?" and a key comes its value. Two layers with MLPs, '
        "rotary positions and RMSNorm.",
        data=f"Prompts of jaxinterp.algorithmic.retrieval, {args.batch} new ones with "
        f"{retrieval.QUERIES} queries a step.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed),
    )  # fmt: skip
    print(card.markdown())


def batch(step: int, *, seed: int, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """The prompts of a step, where their queries end [n 4], and the answers [n 4]."""
    drawn = retrieval.prompts(n, (training_run.TRAINED, seed, step))
    return as_prompts(drawn.ids), drawn.at, drawn.answers


def loss(model: ji.Model, batch: tuple[Any, Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the answers in nats, and how often they are the likeliest token."""
    tokens, at, answers = batch
    return training_run.answer_loss(training_run.logits_at(model, tokens, at), answers)


def measured(model: ji.Model, seed: int, n: int = 2000) -> dict[str, float]:
    """On held-out prompts, at their first queries: loss in nats and accuracy.

    Also the accuracy with twelve pairs, and chance: of one who names any value of the prompt.
    """
    out: dict[str, float] = {}
    for name, pairs in (("", None), ("_of_12", 12)):
        held = retrieval.prompts(n, (training_run.HELD_OUT, seed), pairs)
        # Later queries may be those of before: only the first has to be looked up among the pairs.
        tokens, at = as_prompts(held.ids), held.at[:, :1]
        logits = np.asarray(ji.forward(model, tokens).logits)[np.arange(n)[:, None], at]
        value, seen = training_run.answer_loss(logits, held.answers[:, :1])
        out |= {f"accuracy{name}": float(seen["accuracy"]), f"loss{name}": float(value)}
        out[f"chance{name}"] = float((1 / held.pairs).mean())
    return out


if __name__ == "__main__":
    main()
