"""Find induction heads by their pattern, and test by ablation that they matter.

    python scripts/induction_heads.py --out runs/induction

Heads are ranked by their attention, on random tokens said twice, to what came after the token's
earlier place. The best are ablated together (their mean over these prompts in their place), beside
as many other heads of the same layers drawn at random: how much does the loss on the second half
rise? Ends with a report and a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp import heads, report, results
from jaxinterp.cli.output import begin


def second_half(logits: jax.Array, following: jax.Array) -> jax.Array:
    """Mean next-token loss [B] in nats; logits [B R V] and what follows them [B R]."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, following[..., None], 2)[..., 0].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--heads", type=int, default=8, help="that are ablated together")
    parser.add_argument("--draws", type=int, default=20, help="random sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/induction"))
    args = parser.parse_args()
    begin(args.out, "induction_heads", vars(args))
    model, tokenizer = ji.load(args.model)
    # Heads are chosen on some sequences and tested on others.
    chosen_on, tested_on = (
        heads.repeated_tokens(model, n=args.n, length=args.length, seed=s, bos=tokenizer.bos)
        for s in (args.seed, args.seed + 1)
    )
    scores = heads.pattern_scores(model, chosen_on, "induction")
    mean = scores.mean("prompt").values
    best = [divmod(int(i), mean.shape[1]) for i in np.argsort(-mean, axis=None)[: args.heads]]
    rng = np.random.default_rng(args.seed)
    sets = [best, *(as_many(best, mean.shape[1], rng) for _ in range(args.draws))]

    ids = np.asarray(tested_on.ids)
    at = np.arange(ids.shape[1] - args.length, ids.shape[1] - 1)
    loss = ji.metric(second_half, np.tile(at, (len(ids), 1)), data=(jnp.asarray(ids[:, at + 1]),))
    means = ji.mean_activations(model, [chosen_on], ["z"])["z"].values.astype(np.float32)
    value = ji.Shared(means[:, None, None])  # [L 1 1 H K]
    places = np.array(sets)  # [E heads 2]
    grid = tuple(
        ji.replace("z", value, layer=places[:, i, 0], head=places[:, i, 1])
        for i in range(args.heads)
    )
    base = np.asarray(ji.evaluate(loss, model, tested_on))
    rise = ji.sweep(model, tested_on, grid, loss) - base
    ratio = rise[0].mean() / rise[1:].mean()
    drawn = rng.integers(0, len(base), (2000, len(base)))
    low, high = np.percentile(rise[0][drawn].mean(1), (2.5, 97.5))
    lines = [
        f"# Induction heads of {model.name}", "",
        f"{args.n} sequences of {args.length} random tokens said twice choose the heads, as many "
        "others test them.", "", "| head | attention |", "| --- | --- |",
        *(f"| {layer}.{h} | {mean[layer, h]:.2f} |" for layer, h in best), "",
        f"Loss on the second half: {base.mean():.3f} nats. Ablating these {args.heads} (mean in "
        f"their place) raises it by {rise[0].mean():.3f} (95% over sequences {low:.3f} to "
        f"{high:.3f}); as many others of the same layers by {rise[1:].mean():.3f} on average of "
        f"{args.draws} draws, at most {rise[1:].mean(1).max():.3f}: **{ratio:.1f} times** as much.",
        "", "![scores](induction.png)",
    ]  # fmt: skip
    results.save(scores, args.out / "scores.nc")
    report.score_map(scores, args.out / "induction.png", title="attention to the induction target")
    (args.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def as_many(
    best: list[tuple[int, int]], n_heads: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """As many other heads of each layer, as far as it has them (else the layer below's)."""
    taken, out = set(best), []
    for layer, _ in best:
        at = layer
        while not (free := [(at, h) for h in range(n_heads) if (at, h) not in taken]):
            at -= 1
        out.append(free[rng.integers(len(free))])
        taken.add(out[-1])
    return out


if __name__ == "__main__":
    main()
