"""Train a sparse autoencoder on a model's residual stream, measure it, and describe features.

    python scripts/train_sae.py --out runs/sae

Three steps, each of which a killed run resumes: activations of WikiText-2's training part (or of
``--train``) are harvested into a store; the dictionary is trained from it; on the held-out part it
is measured beside a PCA of as many components as features are active, and a random dictionary with
the same number of features. Five features, drawn at random of those neither rare nor dense, are
described with evidence: what activates them, what they write, and what removing them does to the
next token's distribution where they are active, beside as much along other features' rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import corpora, sae
from jaxinterp.cli.output import begin

LONGEST = 4.0  # times the median norm: few tokens lie above, and at a hundred times
DENSITY = 0.003  # of the features that are described: neither rare nor dense
MOST = 24  # tokens at which a feature is removed
RIVALS = 20  # features along whose rows as much is removed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--train", type=Path, help="text file (default: WikiText-2)")
    parser.add_argument("--held-out", type=Path, help="text file (default: WikiText-2's)")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--width", type=int, default=4608, help="features (default 8 x 576)")
    parser.add_argument("--k", type=float, default=32)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="harvested")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=128, help="held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/sae"))
    args = parser.parse_args()
    begin(args.out, "train_sae", vars(args))
    model, tokenizer = ji.load(args.model)
    config = sae.DictionaryConfig(
        model.config.d_model, args.width, activation="batch_topk", model=model.name,
        site="resid_post", layers=(args.layer,),
    )  # fmt: skip
    store, harvested = harvested_store(args, model, tokenizer, config)
    found, trained = dictionary(args, store, config)
    rows = corpora.read_lines(args.held_out or ji.fetch("wikitext-2") / "test.raw.gz")
    blocks = corpora.packed(rows, tokenizer, args.length, 8)
    held = list(itertools.islice(blocks, args.blocks // 8))
    lines = [
        f"# A sparse autoencoder of {model.name}", "",
        f"The stream after block {args.layer}: {args.width} features of BatchTopK with k = "
        f"{args.k:g}, {args.epochs} epochs of {len(store):,} tokens (first tokens of blocks left "
        f"out) in batches of {args.batch}; harvested {harvested}, trained {trained}. "
        f"Held out: {sum(len(t) for t in held)} blocks of {args.length} tokens.",
        "", *measured(args, model, store, found, held), "",
        *described(args, model, tokenizer, store, found, held),
    ]  # fmt: skip
    (args.out / "report.md").write_text("\n".join(lines))
    print("\n".join(lines))


def harvested_store(args: Any, model: Any, tokenizer: Any, config: Any) -> tuple[sae.Store, str]:
    took, size = timed(args.out / "activations"), 16
    rows = size * (args.length - 1)
    lines = corpora.read_lines(args.train or ji.fetch("wikitext-2") / "train.raw.gz")
    blocks = corpora.packed(lines, tokenizer, args.length, size)
    with tqdm(total=args.tokens, desc="harvest", unit=" tokens") as bar:
        store = sae.harvest_to(
            args.out / "activations", model, config,
            itertools.islice(blocks, -(-args.tokens // rows)),
            on_done=lambda n: bar.update(n - bar.n),
        )  # fmt: skip
    return store, took()


def timed(folder: Path) -> Callable[[], str]:
    """How long it took to make what is in a folder, once it is made."""
    began, begun = time.perf_counter(), folder.exists()
    return lambda: "by an earlier run" if begun else f"in {time.perf_counter() - began:.0f} s"


def dictionary(args: Any, store: sae.Store, config: Any) -> tuple[sae.Dictionary, str]:
    took = timed(args.out / "checkpoint")
    steps = args.epochs * len(store) // args.batch
    sample = ordinary(store, np.concatenate([store.chunk(i) for i in range(min(8, store.chunks))]))
    with tqdm(total=steps, desc="training", unit=" steps") as bar:

        def tell(step: int, seen: dict[str, Any]) -> None:
            bar.update(step + 1 - bar.n)
            bar.set_postfix({n: f"{seen[n][0]:.3g}" for n in ("l0", "explained", "dead")})

        found = sae.train(
            config, store.batches(args.batch, seed=args.seed, longest=LONGEST),
            sae.TrainingConfig(steps, dead_after=200_000), sae.Hyperparameters(
                k=args.k, learning_rate=args.learning_rate, seed=args.seed
            ),
            scaling=sae.measure_scaling(sample, sample), folder=args.out / "checkpoint",
            save_every=200, log=args.out / "log.jsonl", log_every=20, on_step=tell,
        )  # fmt: skip
    sae.save(args.out / "dictionary", found.dictionaries[0], overwrite=True)
    return found.dictionaries[0], took()


def measured(args: Any, model: Any, store: Any, d: sae.Dictionary, held: list[Any]) -> list[str]:
    """The table of metrics, beside a PCA and a random dictionary."""
    sample = ordinary(store, np.concatenate([store.chunk(i) for i in range(min(32, store.chunks))]))
    mean = sample.mean(0)
    rivals = {
        "trained": d,
        f"PCA, {round(args.k)} components": components(sample, round(args.k), d),
        "random rows": random_rows(args, sample, d),
    }
    every = read(model, d, held)
    x = ordinary(store, every)
    lines = [
        "| | L0 | explained variance | loss recovered (zero) | (mean) | loss, nats | dead | "
        "shrinkage |", "| --- |" + " --- |" * 7,
    ]  # fmt: skip
    for name, one in tqdm(rivals.items(), desc="measuring", unit=" dictionaries"):
        own, loss = sae.reconstruction(one, [x]), sae.loss_recovered(model, one, held, mean)
        lines.append(
            f"| {name} | {own.l0:.1f} | {own.explained:.3f} | {loss.recovered_zero:.3f} | "
            f"{loss.recovered_mean:.3f} | {loss.dictionary:.3f} | {own.dead:.1%} | "
            f"{own.shrinkage:.3f} |"
        )
    lines += [
        "", f"The model's own loss is {loss.original:.3f}; with zero in place {loss.zero:.3f}, "
        f"with the mean {loss['mean']:.3f}. Dead: never active on the held-out tokens. "
        f"{len(every) - len(x)} of {len(every)} held-out tokens have more than {LONGEST:g} times "
        "the median norm: left out in training and in all columns but the losses'.",
    ]  # fmt: skip
    return lines


def read(model: Any, d: sae.Dictionary, held: list[Any]) -> np.ndarray:
    return np.concatenate([sae.values_at(model, t, d.config, first=False)[0] for t in held])


def ordinary(store: sae.Store, x: np.ndarray) -> np.ndarray:
    """Without the few examples whose norms are a hundred times the others'."""
    return x[np.linalg.norm(x, axis=1) <= store.norm_limit(LONGEST)]


def components(sample: np.ndarray, n: int, d: sae.Dictionary) -> sae.Dictionary:
    """A PCA as a dictionary: each component and its opposite, of which one is active."""
    mean = sample.mean(0)
    _, V = np.linalg.eigh(np.cov((sample - mean).T.astype(np.float64)))
    rows = V[:, ::-1][:, :n].T.astype(np.float32)
    rows = np.concatenate([rows, -rows])
    config = dataclasses.replace(d.config, n_features=2 * n, activation="relu", subtract_bias=True)
    return sae.Dictionary(
        sae.Parameters(rows.T, np.zeros(2 * n, np.float32), rows, mean.astype(np.float32)), config
    )


def random_rows(args: Any, sample: np.ndarray, d: sae.Dictionary) -> sae.Dictionary:
    """Random directions, read and written; a TopK of the same k, least squares of its scale."""
    rng = np.random.default_rng(args.seed)
    rows = rng.normal(size=(args.width, sample.shape[1])).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = sample.mean(0).astype(np.float32)
    config = dataclasses.replace(d.config, activation="topk", subtract_bias=True)
    one = sae.Dictionary(
        sae.Parameters(rows.T, np.zeros(len(rows), np.float32), rows, mean), config, args.k
    )
    part = sample[:4096]
    said = np.asarray(one(jnp.asarray(part))) - mean
    scale = float((said * (part - mean)).sum() / np.square(said).sum())
    return one.replace(params=one.params.replace(W_dec=rows * scale))


def described(
    args: Any, model: Any, tokenizer: Any, store: Any, d: sae.Dictionary, held: list[Any]
) -> list[str]:
    """Five features: their examples, the tokens they write, what removing them does."""
    held = without_longest(model, store, d, held)
    x = read(model, d, held)
    density = sae.reconstruction(d, [x]).density.values
    alive = np.flatnonzero(density)
    middling = alive[np.argsort(abs(np.log(density[alive] / DENSITY)))][:200]
    rng = np.random.default_rng(args.seed)
    chosen = np.sort(rng.choice(middling, 5, replace=False))
    rivals = rng.choice(np.setdiff1d(middling, chosen), RIVALS, replace=False)
    top = sae.top_examples(
        model, d, held, features=chosen, k=5, window=(8, 2), tokenizer=tokenizer,
        one_per_prompt=True,
    )  # fmt: skip
    wrote = sae.written_tokens(model, d, chosen, k=6, tokenizer=tokenizer)
    lines = [
        "## Five features", "",
        f"Drawn at random of the {len(middling)} whose density on held-out tokens is nearest to "
        f"{DENSITY:.1%}. Removal: what a feature adds to the stream is taken away at up to {MOST} "
        "random tokens at which it is active; the KL divergence of the next token's distribution "
        "from what it was, in nats, mean and 95% bootstrap interval over tokens. Beside it as "
        f"much is taken away at the same tokens along the decoder rows of {RIVALS} other features "
        "of such density, each alone.", "",
    ]  # fmt: skip
    for feature in tqdm(chosen, desc="removal", unit=" features"):
        own, *others = removed(model, d, held, x, feature, rivals, rng)
        interval = ji.stats.bootstrap(xr.DataArray(own, dims="prompt"))
        means = np.mean(others, axis=1)
        lines += [
            f"### {feature}", "",
            f"Active on {density[feature]:.2%} of tokens. Raises "
            + quoted(wrote.text.sel(feature=feature, end="raised").values) + "; lowers "
            + quoted(wrote.text.sel(feature=feature, end="lowered").values) + ".",
            f"Removal at {len(own)} tokens: {own.mean():.3f} "
            f"({interval.low.item():.3f} to {interval.high.item():.3f}); along "
            f"other rows {np.median(means):.3f} ({means.min():.3f} to {means.max():.3f}), of which "
            f"{(means < own.mean()).sum()} of {len(means)} do less.", "",
            *(
                f"- {float(top.value.sel(feature=feature, rank=r)):.1f}: "
                f"`{top.text.sel(feature=feature, rank=r).item()!r}`"
                for r in top['rank'].values
            ), "",
        ]  # fmt: skip
    return lines


def without_longest(model: Any, store: Any, d: sae.Dictionary, held: list[Any]) -> list[Any]:
    """The blocks in which no token has a huge norm, in batches of one shape."""
    limit, size = store.norm_limit(LONGEST), len(held[0])
    whole = joined(held)
    norms = np.linalg.norm(read(model, d, held).reshape(len(whole), -1, d.config.d_in), axis=-1)
    whole = whole[(norms <= limit).all(1)]
    return [whole[i : i + size] for i in range(0, len(whole) - size + 1, size)]


def joined(held: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *held)


def removed(
    model: Any, d: sae.Dictionary, held: list[Any], x: np.ndarray, feature: int, rivals: Any,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """The divergence [1 + rivals, tokens] where a feature, or as much of others, is removed."""
    whole = joined(held)
    values = np.asarray(d.encode(x)[:, feature]).reshape(len(whole), -1)
    prompts, positions = np.nonzero(values)
    pick = rng.permutation(len(prompts))[:MOST]
    prompts, positions = prompts[pick], positions[pick]
    amounts, positions = values[prompts, positions], positions + 1  # the first was not read
    rows = np.asarray(d.params.W_dec)[[feature, *rivals]]
    rows *= np.linalg.norm(rows[0]) / np.linalg.norm(rows, axis=1, keepdims=True)
    tokens = whole[prompts]
    logits = [ji.forward(model, tokens[i]).logits[0, at] for i, at in enumerate(positions)]
    grid = ji.add(
        d.config.site, -amounts[:, None, None] * rows[:, None, None],
        layer=ji.Shared(d.config.layers[0]), position=ji.Shared(positions),
    )  # fmt: skip
    metric = ji.kl(np.stack(logits), position=positions)
    return np.asarray(ji.sweep(model, tokens, grid, metric))


def quoted(texts: Any) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    main()
