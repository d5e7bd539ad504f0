"""Train a tuned lens and hold it against the logit lens on text that it has not seen.

    python scripts/tuned_lens.py --out runs/tuned-lens

Trains on WikiText-2's training part (fetched once) or any text of yours (``--train``,
``--held-out``), one batch of blocks per step, of which ``--rows`` random positions are learned
from. Ends with the lens, in our form and in the tuned-lens library's, a table of KL by layer and a
picture. Killed runs resume from the last saved step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optax
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import corpora, lens, report, results
from jaxinterp.cli.output import begin
from jaxinterp.files import whole

SAVE = 50  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--train", type=Path, help="text file (default: WikiText-2)")
    parser.add_argument("--held-out", type=Path, help="text file (default: WikiText-2's)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=128, help="positions learned from, per step")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--blocks", type=int, default=8, help="held-out blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned-lens"))
    args = parser.parse_args()
    model, tokenizer = ji.load(args.model)
    begin(args.out, "tuned_lens", {**vars(args), "weights": results.weights_digest(model)})
    began = time.perf_counter()
    tuned, losses = train(args, model, tokenizer)
    took = time.perf_counter() - began

    rows = corpora.read_lines(args.held_out or ji.fetch("wikitext-2") / "test.raw.gz")
    blocks = corpora.packed(rows, tokenizer, args.length, 1)
    held = np.concatenate([np.asarray(t.ids) for t in itertools.islice(blocks, args.blocks)])
    readings = {
        name: lens.read(model, held, kind, batch=1)
        for name, kind in (("logit lens", None), ("tuned lens", tuned))
    }
    lens.save(args.out / "lens", tuned, model_name=model.name, overwrite=True)
    lens.save(args.out / "lens-common", tuned, form="tuned-lens", model_name=model.name,
              overwrite=True)  # fmt: skip
    for name, reading in readings.items():
        results.save(reading.kl, args.out / f"{name.replace(' ', '_')}_kl.nc")
    report.lens_curves(
        readings, args.out / "kl.png", title=f"Lenses of {model.name}, held-out text"
    )
    kl = {
        name: reading.kl.mean(("prompt", "position")).values for name, reading in readings.items()
    }
    lines = [f"# Tuned lens of {model.name}", ""]
    lines += ["| stream before layer | logit lens | tuned lens |", "| --- | --- | --- |"]
    lines += [
        f"| {layer} | {a:.3f} | {b:.3f} |"
        for layer, (a, b) in enumerate(zip(*kl.values(), strict=True))
    ]
    worse = [layer for layer, (a, b) in enumerate(zip(*kl.values(), strict=True)) if b >= a > 0]
    recipe = json.dumps({k: str(v) for k, v in vars(args).items() if v is not None})
    lines += [
        "", "KL(model || lens) in nats, means over positions of "
        f"{held.shape[0]} held-out blocks of {held.shape[1]} tokens; the last row is the model. "
        f"Tuned is {'above logit at ' + str(worse) if worse else 'below logit at every layer'}. "
        f"{args.steps} steps of {args.rows} positions ({len(losses)} in this call, {took:.0f} s), "
        f"Adam, {args.learning_rate} falling to 0. Recipe: `{recipe}`.", "", "![KL](kl.png)",
    ]  # fmt: skip
    (args.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def train(args: argparse.Namespace, model: ji.Model, tokenizer: ji.Tokenizer):
    """The lens, and the losses of this call's steps; saved on the way."""
    kept, state = args.out / "partial", args.out / "partial.json"
    done, tuned = 0, lens.start_tuned(model)
    if state.is_file():
        done, tuned = json.loads(state.read_text())["steps"], lens.load(kept)
    batches = endless(args, tokenizer)
    for _ in range(done):
        next(batches)
    losses = []
    schedule = optax.linear_schedule(args.learning_rate, 0.0, args.steps)
    with tqdm(total=args.steps, initial=done, unit="step") as bar:
        while done < args.steps:
            n = min(SAVE, args.steps - done)
            # Adam's averages start anew at every save; 50 steps are many times their memory.
            rate = optax.linear_schedule(float(schedule(done)), float(schedule(done + n)), n)

            def on_step(step: int, loss: np.ndarray) -> None:
                bar.set_postfix(kl=f"{loss.mean():.3f}")
                bar.update()

            tuned, found = lens.train_tuned(
                model, batches, n, optimizer=optax.adam(rate), rows=args.rows, start=tuned,
                seed=args.seed + done, on_step=on_step,
            )  # fmt: skip
            losses.append(found)
            done += n
            lens.save(kept, tuned, overwrite=True)
            with whole(state) as file:
                file.write_text(json.dumps({"steps": done}))
    return tuned, np.concatenate(losses) if losses else np.zeros((0, model.config.n_layers))


def endless(args: argparse.Namespace, tokenizer: ji.Tokenizer) -> Iterator[ji.Tokens]:
    """Batches of the training text, over and over."""
    while True:
        rows = corpora.read_lines(args.train or ji.fetch("wikitext-2") / "train.raw.gz")
        yield from corpora.packed(rows, tokenizer, args.length, args.batch)


if __name__ == "__main__":
    main()
