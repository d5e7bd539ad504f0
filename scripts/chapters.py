"""Chapters that the studies of directions share: decodable, used, steered."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import corpora, directions, probes, report, results, steering

if TYPE_CHECKING:
    import xarray as xr

COEFFICIENTS = (-0.5, -0.25, -0.1, -0.05, 0.05, 0.1, 0.25, 0.5)
LIMIT = 0.1  # nats of KL on unrelated text


def options(about: str, out: str) -> argparse.Namespace:
    """The command line of a study; its folder is made."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--placebos", type=int, default=5)
    parser.add_argument("--texts", type=int, default=4, help="unrelated blocks of 32 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def probed(
    out: Path, X: Any, labels: Any, groups: Any, types: Any, seed: int, **more: Any
) -> xr.Dataset:
    """Probes of every point X [L+1 n D], written with a picture.

    Accuracy is on groups that were not trained on; the control task, which must meet its types
    again, has splits of its own (``selectivity`` is within those).
    """
    with tqdm(desc=out.name, unit=" fits") as bar:
        found = probes.probe(X, labels, groups=groups, seed=seed, on_done=bar.update, **more)
        mixed = probes.probe(X, labels, types=types, seed=seed, on_done=bar.update)
    found = found.assign(control=mixed.control, selectivity=mixed.selectivity)
    results.save(found, out.with_suffix(".nc"))
    report.probe_curves(found, out.with_suffix(".png"), title="Decodable")
    return found


def decodable(
    out: Path, X: Any, labels: Any, groups: Any, types: Any, examples: str, seed: int
) -> list[str]:
    mean = probed(out / "probe", X, labels, groups, types, seed).mean("split")
    best = int(np.argmax(mean.accuracy.values))
    return [
        "## Decodable", "",
        f"{examples}: accuracy {float(mean.accuracy[0]):.3f} before layer 0, "
        f"{float(mean.accuracy[best]):.3f} at best (before layer {best}); there shuffled labels "
        f"{float(mean.shuffled[best]):.3f}, random direction "
        f"{float(mean.random_direction[best]):.3f}, majority {float(mean.majority):.3f}. A control "
        "task (a random label for each adjective, which the test meets again) gives "
        f"{float(mean.control[best]):.3f}, {float(mean.selectivity[best]):+.3f} below the probe on "
        "the same splits: what is nearly as well read of labels without meaning is little evidence "
        "by itself.", "", "![probe](probe.png)", "",
    ]  # fmt: skip


def used(
    model: Any, tokenizer: Any, prompts: Any, sign: np.ndarray, metric: Any, direction: Any,
    examples: str, placebos: int, seed: int,
) -> list[str]:  # fmt: skip
    """The metric's gap between two kinds of prompts, whole and with directions projected out.

    sign [n]: +1 for the kind on which the metric should be higher, -1 for the other; the i-th of
    one kind and the i-th of the other are a pair, which the interval resamples whole. The loss on
    unrelated text says what else is lost: a model that is broken tells nothing apart.
    """

    def gaps_of(values: np.ndarray) -> np.ndarray:
        return values[sign > 0] - values[sign < 0]

    def gap(values: np.ndarray) -> float:
        return float(gaps_of(values).mean())

    whole = np.asarray(ji.evaluate(metric, model, prompts))
    right = ((whole - np.median(whole)) * sign > 0).mean()
    every = (direction, *directions.random_like(direction, placebos, seed))
    left = np.stack([np.asarray(ji.evaluate(metric, model, prompts, d.ablate())) for d in every])
    blocks, loss = unrelated(tokenizer, 24), ji.cross_entropy()
    losses = [
        np.mean(ji.evaluate(loss, model, blocks, edit))
        for edit in ((), *(d.ablate() for d in every))
    ]
    layers = np.arange(len(direction.vector))
    each = ji.project_out("resid_post", direction.vector[:, None, None], layer=layers)
    by_layer = [
        np.asarray(ji.sweep(model, tokens, each, of))
        for tokens, of in ((prompts, metric), (blocks, loss))
    ]
    n_pairs = len(gaps_of(whole))
    drawn = np.random.default_rng(seed).integers(0, n_pairs, (2000, n_pairs))
    shares = gaps_of(left[0])[drawn].mean(1) / gaps_of(whole)[drawn].mean(1)
    low, high = np.percentile(shares, (2.5, 97.5))
    gaps = np.array([gap(row) for row in left])
    return [
        "## Used", "",
        f"{examples} ({len(sign)} prompts): the gap between the two kinds is {gap(whole):.2f} "
        f"logits, and {right:.0%} of the prompts lie on their side of the median. With the "
        f"direction projected out at every layer and position {gaps[0]:.2f} are left "
        f"({gaps[0] / gap(whole):.0%} [95% over pairs {low:.0%} to {high:.0%}]); with random "
        f"directions {gaps[1:].min():.2f} to {gaps[1:].max():.2f}. The loss on unrelated text is "
        f"{losses[0]:.2f} nats, with the direction projected out {losses[1]:.2f}, with random ones "
        f"{min(losses[2:]):.2f} to {max(losses[2:]):.2f}.", "",
        "Projected out after one layer alone, at every position:", "",
        "| after layer | gap left | loss on unrelated text |", "| --- | --- | --- |",
        *(f"| {i} | {gap(by_layer[0][i]):.2f} | {by_layer[1][i].mean():.2f} |"
          for i in range(0, len(direction.vector), 3)), "",
        "Where unrelated text breaks, the gap that is left says nothing of the two kinds.", "",
    ]  # fmt: skip


def unrelated(tokenizer: Any, n: int) -> np.ndarray:
    """Blocks of 32 tokens of WikiText-2."""
    rows = corpora.read_lines(ji.fetch("wikitext-2") / "valid.raw.gz")
    blocks = zip(corpora.packed(rows, tokenizer, 32, 1), range(n), strict=False)
    return np.concatenate([np.asarray(tokens.ids) for tokens, _ in blocks])


def steered(
    model: Any, tokenizer: Any, halves: Sequence[list[str]],
    metric_of: Callable[[list[str]], Any], direction: Any, *, out: Path,
    prompting: tuple[str, Callable[[str], str]], placebos: int, texts: int, seed: int,
    place: tuple[str, Callable[[list[str]], Any]] = ("everywhere", lambda texts: None),
) -> list[str]:  # fmt: skip
    """Layer and coefficient chosen on one half of the prompts, the effect told on the other.

    metric_of: the metric of some prompts, to be raised. prompting: what the rival is called, and
    a prompt changed to ask for the same in words. place: where the direction is added, in words
    and by position; unrelated text gets it everywhere.
    """
    chosen_on, tested_on = halves
    layers = list(range(2, model.config.n_layers, 4))
    norms = steering.mean_norms(model, tokenizer(chosen_on))
    options = {
        "coefficients": COEFFICIENTS, "layers": layers, "norms": norms, "seed": seed,
        "placebos": placebos,
    }  # fmt: skip
    named = {"direction": direction}
    cells = len(layers) * len(COEFFICIENTS) * (1 + placebos)
    with tqdm(total=cells * len(chosen_on), desc="steering", unit=" exp") as bar:
        first = ji.steer(
            model, tokenizer(chosen_on), metric_of(chosen_on), named, on_done=bar.update,
            positions=place[1](chosen_on), **options,
        )  # fmt: skip
    blocks = unrelated(tokenizer, texts)
    with tqdm(total=cells * len(blocks), desc="unrelated text", unit=" exp") as bar:
        apart = steering.side_effects(model, blocks, named, on_done=bar.update, **options)
    results.save(first, out / "steering.nc")
    results.save(apart, out / "side_effects.nc")
    report.steering_curves(first, out / "steering.png", title="Steering")
    report.steering_curves(apart, out / "side_effects.png", title="KL on unrelated text, nats")

    moved = (first - first.clean).sel(direction="direction").mean("prompt")
    kl = apart.sel(direction="direction").mean("prompt")
    allowed = moved.where((kl <= LIMIT) & (moved.coefficient > 0))
    pictures = ["![steering](steering.png)", "", "![side effects](side_effects.png)", ""]
    if not bool(allowed.notnull().any()):
        said = f"No layer and coefficient keeps the KL on unrelated text below {LIMIT} nats."
        return ["## Steering", "", said, "", *pictures]
    at = allowed.argmax(("layer", "coefficient"))
    layer, most = (allowed[d].values[int(at[d])].item() for d in ("layer", "coefficient"))

    both = [-most, most]
    tokens = tokenizer(tested_on)
    final = ji.steer(
        model, tokens, metric_of(tested_on), named, positions=place[1](tested_on),
        **{**options, "coefficients": both, "layers": [layer]},
    ).isel(layer=0)  # fmt: skip
    effect = (final - final.clean).transpose("coefficient", "direction", "prompt")
    rival, asked = prompting
    prompted = np.asarray(
        ji.evaluate(metric_of(tested_on), model, tokenizer([asked(text) for text in tested_on]))
    )
    prompted = prompted - final.clean.values
    made = steering.continuations(
        model, tokens[:2], direction, layer, [-most, 0.0, most], 12, norms=norms,
        tokenizer=tokenizer,
    )  # fmt: skip
    return [
        "## Steering", "",
        f"Prompts such as `{chosen_on[0]}`, the direction added {place[0]}. On one half of them, "
        f"layer {layer} and coefficient {most} (of the mean norm there, {norms[layer]:.0f}) raise "
        f"the metric most of those that change unrelated text by at most {LIMIT} nats (KL, "
        f"{len(blocks)} blocks of WikiText-2, the direction added everywhere). "
        f"On the other half ({len(tested_on)} prompts; the metric is "
        f"{float(final.clean.mean()):+.2f} without steering):", "",
        "| coefficient | change [95% over prompts] | prompts that go the other way | random "
        "directions (their means) | KL on unrelated text |", "| --- | --- | --- | --- | --- |",
        *(_row(effect.sel(coefficient=c), c, kl.sel(layer=layer), seed) for c in both), "",
        f"In words ({rival}) the change is {prompted.mean():+.2f}.", "", *pictures,
        "Continuations (greedy), with the loss of the new tokens in nats under the model as it "
        "is:", "", "| coefficient | loss | text |", "| --- | --- | --- |",
        *(
            f"| {float(c):+.2f} | {float(made.loss.sel(coefficient=c)[p]):.2f} | "
            f"`{str(made.text.sel(coefficient=c).values[p])!r}` |"
            for p in made.prompt.values for c in made.coefficient.values
        ), "",
    ]  # fmt: skip


def _row(effect: Any, coefficient: float, kl: Any, seed: int) -> str:
    own = effect.sel(direction="direction").values
    random = effect.isel(direction=slice(1, None)).mean("prompt").values
    drawn = np.random.default_rng(seed).integers(0, len(own), (2000, len(own)))
    low, high = np.percentile(own[drawn].mean(1), (2.5, 97.5))
    return (
        f"| {coefficient:+.2f} | {own.mean():+.2f} [{low:+.2f}, {high:+.2f}] | "
        f"{(own * np.sign(coefficient) < 0).mean():.0%} | {random.min():+.2f} to "
        f"{random.max():+.2f} | {float(kl.sel(coefficient=coefficient)):.3f} |"
    )
