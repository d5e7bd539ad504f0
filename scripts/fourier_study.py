"""Addition mod 113 by few frequencies: which, that erasing them destroys it, that turning moves it.

    python scripts/fourier_study.py --out docs/mechanisms/fourier

The numbers' embedding is a table over 0 to 112; its Fourier transform has a few large frequencies
(Nanda et al. 2023, arXiv:2301.05217). They are erased from the table, and all others; and the first
number's place on their circles is turned to that of another number, which should move the sum by as
much. Ends with a claim and a picture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import mechanism
import numpy as np

import jaxinterp as ji
from jaxinterp import erasure
from jaxinterp.algorithmic import addition

LARGE = 0.02  # share of the table's power from which a frequency is a key one
NEEDED = 0.99  # accuracy without a frequency from which it is hardly needed
DRAWS = 20


def main() -> None:
    args = mechanism.parser(__doc__, "fourier", "addition-113", n=192).parse_args()
    model, _ = ji.load(args.model)
    table = np.asarray(model.params.embed.W_E[: addition.P], np.float64)
    share = addition.power(table)[1:]
    share /= share.sum()
    key = 1 + np.flatnonzero(share > LARGE)
    others = np.setdiff1d(1 + np.arange(addition.FREQUENCIES), key)
    # Pairs that the model was not trained on.
    held_out = addition.split(seed=0)[1]
    rng = np.random.default_rng(args.seed)
    ids = addition.every()[rng.choice(held_out, args.n, replace=False)]
    names = ", ".join(map(str, key))
    claim = ji.Claim(
        f"{model.name} adds by the frequencies {names} of its numbers' embedding: what they say of "
        "a number is what it adds.",
        model, task="addition mod 113", dataset=f"{args.n} of the pairs not trained on",
        components=[f"W_E, frequency {k} ({share[k - 1]:.1%} of the power)" for k in key],
        experiments=[
            *erasing(ids, table, key, others, args.seed),
            *turning(ids, table, key, rng),
        ],
        limits=[
            "How attention and the MLP multiply the waves, and how the unembedding reads them, was "
            "not taken apart here.",
            "That the model does nothing else leaves no unrelated behaviour to be spared.",
            "One seed of training; other seeds find other frequencies (Nanda et al. 2023).",
        ],
    ).run(model)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    draw(share, key, args.out / "spectrum.png")
    accuracies = {
        name: exact(model, kept) for name, kept in (
            ("as it is", range(1, addition.FREQUENCIES + 1)), (f"without {names}", others),
            (f"{names} and the mean alone", key),
            *((f"without {k}", np.setdiff1d([*key, *others], [k])) for k in key),
        )
    }  # fmt: skip
    spared = [str(k) for k in key if accuracies[f"without {k}"] > NEEDED]
    mechanism.state(args, claim, [
        f"{len(key)} frequencies hold {share[key - 1].sum():.1%} of the power of the embedding's "
        f"table [113 128] (its mean left out); the next one {np.delete(share, key - 1).max():.2%}.",
        "", "![spectrum](spectrum.png)", "",
        "On all 12,769 pairs, the table itself changed (no intervention: new weights):", "",
        *mechanism.table(["the embedding's table", "accuracy"], [
            [name, f"{value:.4f}"] for name, value in accuracies.items()
        ]),
        "",
        *(["Hardly needed by themselves, for all their power: " + ", ".join(spared), ""]
          if spared else []),
        *neurons(model, key),
    ])  # fmt: skip


def waves(table: np.ndarray, frequencies: Any) -> np.ndarray:
    """What the table says of each number through some frequencies: [113 D]."""
    rows = functions(frequencies)
    return rows.T @ (rows @ table)


def functions(frequencies: Any) -> np.ndarray:
    """Their cosines and sines [2n 113]."""
    k = np.asarray(list(frequencies))
    return addition.fourier_basis()[np.stack([2 * k - 1, 2 * k], 1).reshape(-1)]


def eraser(table: np.ndarray, frequencies: Any) -> erasure.Eraser:
    """Projects out of the stream all that the frequencies write, about the numbers' mean."""
    span = functions(frequencies) @ table
    return dataclasses.replace(erasure.direction_eraser(span), centre=table.mean(0))


def each_alone(table: np.ndarray) -> list[erasure.Eraser]:
    """An eraser for each frequency that leaves what all others write as it is.

    Their directions are not orthogonal: a projection along one would take from others, too.
    """
    span = functions(range(1, addition.FREQUENCIES + 1)) @ table
    span /= np.linalg.norm(span, axis=1, keepdims=True)
    read = np.linalg.pinv(span)
    pairs = [slice(i, i + 2) for i in range(0, len(span), 2)]
    return [erasure.Eraser(read[:, pair], span[pair], table.mean(0)) for pair in pairs]


def beside(span: erasure.Eraser) -> erasure.Eraser:
    """Projects out all but that."""
    Q = np.linalg.svd(span.removed)[0][:, span.rank :]
    return erasure.Eraser(Q, Q.T, span.centre)


def erasing(
    ids: np.ndarray, table: np.ndarray, key: np.ndarray, others: np.ndarray, seed: int
) -> list[ji.Experiment]:
    answer = ji.accuracy(addition.sums(ids))
    numbers = np.array([True, True, False])
    span = eraser(table, key)
    random = [
        erasure.random_eraser(table.shape[1], span.rank, seed + i, table.mean(0))
        for i in range(DRAWS)
    ]

    def erased(one: Any) -> ji.Edit:
        return ji.apply("embed", one, position=ji.Shared(numbers))

    return [
        ji.Experiment(
            "each frequency erased alone", "localization", ids,
            erased(mechanism.stacked(each_alone(table))), ji.log_prob(addition.sums(ids)),
            grid=True,
            names=[f"frequency {k}" for k in range(1, addition.FREQUENCIES + 1)],
            note="All that it writes, and nothing that others write.",
        ),
        ji.Experiment("the frequencies erased", "effect", ids, erased(span), answer,
                      note=f"{span.rank} of {table.shape[1]} dimensions."),
        ji.Experiment("all other dimensions erased", "control", ids, erased(beside(span)), answer,
                      margin=0.02, note="What is left is the mean and the frequencies' span."),
        ji.Experiment(
            f"as many random dimensions erased, {DRAWS} draws", "control", ids,
            erased(mechanism.stacked(random)), answer, grid=True, margin=0.02,
        ),
    ]  # fmt: skip


def turning(
    ids: np.ndarray, table: np.ndarray, key: np.ndarray, rng: np.random.Generator
) -> list[ji.Experiment]:
    """The first number is moved to another's place, in the frequencies' waves or in all else."""
    by = rng.integers(1, addition.P, len(ids))
    other = (ids[:, 0] + by) % addition.P
    moved = (addition.sums(ids) + by) % addition.P
    own = waves(table, key)
    rest = table - own
    effect, control = (
        ji.add("embed", (t[other] - t[ids[:, 0]])[:, None].astype(np.float32), position=0)
        for t in (own, rest)
    )
    metric = ji.accuracy(moved)
    return [
        ji.Experiment("the first number turned to another", "effect", ids, effect, metric,
                      note="By the key frequencies alone; is the answer then the other sum?"),
        ji.Experiment("turned in all else", "control", ids, control, metric, margin=0.02),
    ]  # fmt: skip


def exact(model: ji.Model, kept: Any) -> float:
    """The accuracy on all pairs where the table holds its mean and some frequencies."""
    W = np.asarray(model.params.embed.W_E, np.float64)
    table = W[: addition.P]
    W = np.concatenate([table.mean(0) + waves(table, kept), W[addition.P :]])
    embed = model.params.embed.replace(W_E=jnp.asarray(W, jnp.float32))
    changed = model.replace(params=model.params.replace(embed=embed))
    ids = addition.every()
    right = [
        ji.evaluate(ji.accuracy(addition.sums(part)), changed, part)
        for part in np.array_split(ids, 4)
    ]
    return float(np.concatenate(right).mean())


def neurons(model: ji.Model, key: np.ndarray) -> list[str]:
    """How many MLP neurons are waves of one frequency: functions of a and b, over all pairs."""
    ids = addition.every()
    post = np.concatenate([
        np.asarray(ji.forward(model, part, record=("mlp_post",)).activations["mlp_post"][0, :, -1])
        for part in np.array_split(ids, 8)
    ]).astype(np.float64)  # fmt: skip
    grid = post.reshape(addition.P, addition.P, -1)
    F = addition.fourier_basis()
    squares = np.square(np.einsum("ia,jb,abn->ijn", F, F, grid, optimize=True))
    squares[0, 0] = 0  # the mean
    total = squares.sum((0, 1))
    alive = total > 1e-6 * total.max()
    by_one = np.zeros((addition.FREQUENCIES, total.size))
    for k in range(1, addition.FREQUENCIES + 1):
        rows = [0, 2 * k - 1, 2 * k]
        by_one[k - 1] = squares[np.ix_(rows, rows)].sum((0, 1)) / np.maximum(total, 1e-30)
    best, at = by_one.max(0)[alive], 1 + by_one.argmax(0)[alive]
    clear = best > 0.85
    of_key = np.isin(at[clear], key)
    counts = ", ".join(f"{k}: {(at[clear] == k).sum()}" for k in key)
    return [
        f"Of {alive.sum()} MLP neurons that vary at \"=\", {clear.sum()} have over 85% of their "
        "variance over all pairs in the nine functions 1, cos, sin of one frequency in a times "
        f"those in b (median of all {np.median(best):.3f}); {of_key.mean():.1%} of them are of a "
        f"key frequency ({counts}).",
    ]  # fmt: skip


def draw(share: np.ndarray, key: np.ndarray, path: Any) -> None:
    """Bars of the power by frequency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    k = 1 + np.arange(len(share))
    axes.bar(k, share, color=np.where(np.isin(k, key), "#c2410c", "#94a3b8"))
    axes.set(xlabel="frequency", ylabel="share of power", xlim=(0, len(share) + 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
