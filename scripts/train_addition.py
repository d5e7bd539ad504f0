"""Train the shipped model of addition mod 113, through grokking.

    python scripts/train_addition.py --out weights/addition-113

One layer, full batches of 30% of the pairs, strong weight decay (Nanda et al. 2023,
arXiv:2301.05217): the pairs are known by heart within some hundred steps, the others follow much
later, at once. Models along the way are kept. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
import training_run

import jaxinterp as ji
from jaxinterp.algorithmic import addition
from jaxinterp.loading.shipped import ship

NAME = "addition-113"
CONFIG = ji.Config(
    n_layers=1, d_model=128, n_heads=4, d_head=32, d_mlp=512, vocab_size=len(addition.TOKENS),
    n_ctx=3, positions="learned", norm="none", act="relu", gated=False, bias_mlp=True,
)  # fmt: skip
KEEP = (0, 500, 2000, 4000, 6000, 8000, 10000, 14000)
WATCHED = 512  # held-out pairs whose loss is in the history


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=20000)
    parser.add_argument("--share", type=float, default=0.3, help="of the pairs to train on")
    args = parser.parse_args()
    start = training_run.started(CONFIG, args.seed, NAME, CONFIG.d_model**-0.5)
    batch = functools.partial(pairs, seed=args.seed, share=args.share)
    trained, compute = training_run.run(
        args, start, batch, loss, optimizer(args.steps), keep=[n for n in KEEP if n < args.steps],
        shown=("loss", "held_out_loss"),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=addition.tokenizer(), kept=trained.kept,
        description='Addition mod 113: prompts "a b =", whose next token is the sum. Trained past '
        "grokking; checkpoints hold the way there.",
        data=f"{args.share:.0%} of the 12,769 pairs of jaxinterp.algorithmic.addition, drawn from "
        "the seed, all in every step.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, args.seed, args.share),
    )  # fmt: skip
    print(card.markdown())
    for steps, model in trained.kept.items():
        print(steps, measured(model, args.seed, args.share))


@functools.cache
def pairs(step: int, *, seed: int, share: float) -> dict[str, np.ndarray]:
    """The batch of every step: the pairs to train on, and some of the others to watch."""
    every = addition.every()
    known, others = addition.split(seed, share)
    watched = np.random.default_rng(seed).choice(others, min(WATCHED, len(others)), replace=False)
    return {"known": every[known], "others": every[watched]}


def loss(model: ji.Model, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the sums at "=", in nats; beside it what it is on other pairs."""
    value, seen = answered(model, batch["known"])
    other, of_others = answered(jax.lax.stop_gradient(model), batch["others"])
    held_out = {"held_out_loss": other, "held_out_accuracy": of_others["accuracy"]}
    return value, {**seen, **held_out}


def answered(model: ji.Model, ids: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and accuracy over prompts [n 3]."""
    at_end = np.full((len(ids), 1), 2)
    logits = training_run.logits_at(model, ids, at_end)[:, 0]
    return training_run.answer_loss(logits, addition.sums(ids))


def optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW as in the paper; the rate falls over the last tenth, so that no spike is at the end."""
    last = max(1, steps // 10)
    rate = optax.join_schedules(
        [optax.linear_schedule(1e-4, 1e-3, 10), optax.linear_schedule(1e-3, 0.0, last)],
        [steps - last],
    )
    return optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=1.0)


def measured(model: ji.Model, seed: int, share: float) -> dict[str, float]:
    """On all pairs: accuracy, losses of those known and not; and how few waves the embedding holds.

    power_in_6: the share of the squares of the numbers' embedding (its mean left out) in its six
    largest frequencies.
    """
    every = addition.every()
    logits = np.concatenate([
        np.asarray(ji.forward(model, part).logits[:, -1], np.float64)
        for part in training_run.in_parts(every, 2000)
    ])  # fmt: skip
    answers = addition.sums(every)
    top = logits.max(1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    losses = -log_p[np.arange(len(every)), answers]
    known, others = addition.split(seed, share)
    power = np.sort(addition.power(model.params.embed.W_E[: addition.P])[1:])[::-1]
    return {
        "accuracy": float((logits.argmax(1) == answers).mean()),
        "loss": float(losses[known].mean()),
        "held_out_loss": float(losses[others].mean()),
        "power_in_6": float(power[:6].sum() / power.sum()),
    }


if __name__ == "__main__":
    main()
