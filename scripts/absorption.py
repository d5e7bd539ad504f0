"""How much a trained SAE's first-letter features are absorbed by features of single words.

    python scripts/absorption.py runs/sae/dictionary --out runs/absorption

Takes folders of SAEs at one site and layer of a model, in any form that the library reads, and
measures all of them on the same words (Chanin et al. 2024, arXiv:2409.14507; SAEBench, Karvonen et
al. 2025, arXiv:2503.09532). Ends with a table by letter, the words absorbed and by which features,
and the numbers as NetCDF. Where the model's stream does not tell letters, it says so and stops.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import results, sae
from jaxinterp.cli.output import begin
from jaxinterp.sae.spelling import PROMPT, fit_spelling

SHOWN = 40  # absorbed words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dictionaries", type=Path, nargs="+", help="folders")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--words", type=int, default=6000, help="drawn of the vocabulary's")
    parser.add_argument("--examples", type=int, default=3, help="in each prompt (papers: 10)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--min-letters", type=int, default=20, help="that the probes must know")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/absorption"))
    args = parser.parse_args()
    begin(args.out, "absorption", vars(args))
    found = {str(path): sae.load(path) for path in args.dictionaries}
    places = {d.config.place for d in found.values()}
    if len(places) > 1:
        raise SystemExit(f"The dictionaries lie at {sorted(places)}: give those of one place.")
    ((site, layer),) = places
    model, tokenizer = ji.load(args.model)
    began = time.perf_counter()
    with tqdm(total=args.words, desc="activations", unit=" words") as bar:
        spelled = fit_spelling(
            model, tokenizer, site, layer, words=args.words, prompt=args.prompt,
            examples=args.examples, seed=args.seed, min_letters=args.min_letters,
            on_done=bar.update,
        )  # fmt: skip
    lines = [
        f"# Feature absorption in {model.name}, {site} of layer {layer}", "",
        f"{len(spelled.words)} words after {args.examples} examples each; probes tell the first "
        f"letter of the {spelled.splits.test.sum()} held out with accuracy {spelled.accuracy:.3f} "
        f"({spelled.known.sum()} letters known; {time.perf_counter() - began:.0f} s).", "",
    ]  # fmt: skip
    for number, (name, d) in enumerate(tqdm(found.items(), desc="dictionaries")):
        measured = spelled.measure(d)
        results.save(measured, args.out / f"absorption-{number}.nc")
        lines += described(name, d, spelled, measured)
    (args.out / "report.md").write_text("\n".join(lines))
    print("\n".join(lines))


def described(name: str, d: sae.Dictionary, spelled: Any, found: Any) -> list[str]:
    """The table of one dictionary, and the words that are absorbed."""
    about = spelled.measure(d, about=np.asarray(d.params.b_dec))
    lines = [
        f"## {name}", "",
        f"{d.config.n_features} features, {d.config.activation}. Means over letters: full "
        f"absorption {float(found.full.mean()):.3f}, absorption fraction "
        f"{float(found.fraction.mean()):.3f} (counted from b_dec instead of 0: "
        f"{float(about.full.mean()):.3f}, {float(about.fraction.mean()):.3f}); words whose split "
        f"features are silent {float(found.silent.mean()):.3f}.", "",
        "| letter | words | probe F1 | split features | sparse probe F1 | F1 of firing | silent | "
        "full | fraction |", "| --- |" + " --- |" * 8,
    ]  # fmt: skip
    for letter in found.letter.values:
        row = found.sel(letter=letter)
        features = ", ".join(str(f) for f in row.feature.values if f >= 0)
        numbers = (row.sparse_f1, row.f1, row.silent, row.full, row.fraction)
        lines.append(
            f"| {letter} | {int(row.words)} | {float(row.probe_f1):.2f} | {features} | "
            + " | ".join(f"{float(value):.2f}" for value in numbers)
            + " |"
        )
    absorbed = found.isel(word=np.flatnonzero(found.absorbed))
    pairs = zip(absorbed.text.values, absorbed.absorber.values, strict=True)
    listed = [f"`{text}` ({feature})" for text, feature in pairs]
    more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return [*lines, "", f"Absorbed, by feature: {', '.join(listed[:SHOWN]) or 'none'}{more}.", ""]


if __name__ == "__main__":
    main()
