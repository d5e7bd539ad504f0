"""Grammatical number: where it can be read, and where the model uses it.

    python scripts/number_study.py --out runs/number

Prompts such as "The keys near the cabinet" (is or are?). Probes of every layer at the subject and
at the last token, with baselines and a control task; then the number is erased (LEACE, fitted on
other prompts, other nouns) and agreement is measured, beside random erasures of the same rank.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import chapters
import numpy as np
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import probes, results
from jaxinterp.cli.output import begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--placebos", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/number"))
    args = parser.parse_args()
    begin(args.out, "number_study", vars(args))
    model, tokenizer = ji.load(args.model)
    task = ji.tasks.subject_verb_agreement(tokenizer, n=args.n, seed=args.seed)
    ability = ji.tasks.check(model, task)
    number = np.asarray(task.prompts["number"])
    words = np.asarray(task.prompts["subject"])
    nouns = np.char.rstrip(words, "s")  # a noun's two numbers stay on one side of a split
    able = ", ".join(f"{k} {np.round(v, 3)}" for k, v in ability.items())
    lines = [
        f"# Grammatical number in {model.name}", "",
        f"{len(task)} prompts such as `{task.clean_text[0]}`: {able}.", "",
    ]  # fmt: skip
    texts = probes.text_baselines(task.clean)
    for role in ("subject", "END"):
        at = task.roles[role]
        X = ji.collect(model, task.clean, at)
        found = chapters.probed(
            args.out / f"{role}_probe", X, number, nouns, words, args.seed, baselines=texts
        )
        with tqdm(desc=f"erasing at {role}", unit=" experiments") as bar:
            used = ji.probe_and_erase(
                model, task.clean, number, task.metric, position=at, groups=nouns,
                placebos=args.placebos, seed=args.seed, on_done=bar.update,
            )  # fmt: skip
        results.save(used, args.out / f"{role}_erased.nc")
        lines += chapter(role, found, used)
    lines += [
        "## What this says, and what it does not", "",
        "A probe's accuracy says that number can be read off linearly, in prompts of these "
        "templates, of nouns the probe has not seen. A fall of the metric under erasure that "
        "random erasures of the same rank do not cause says that something that was erased there "
        "is used for this choice of verb. It does not say how, nor that nothing else carries "
        "number.", "",
    ]  # fmt: skip
    (args.out / "report.md").write_text("\n".join(lines))
    print("\n".join(lines))


def chapter(role: str, found, used) -> list[str]:
    """One position's part of the report."""
    mean = found.mean("split")
    change = used.value - used.clean
    drawn = np.random.default_rng(0).integers(0, used.sizes["prompt"], (2000, used.sizes["prompt"]))
    rows = []
    for layer in used.layer.values:
        one = change.sel(layer=layer).transpose("eraser", "prompt").values
        low, high = np.percentile(one[0][drawn].mean(1), (2.5, 97.5))
        placebo = one[1:].mean(1)
        probe = mean.sel(point=layer + 1)  # what block l leaves is the input of block l + 1
        rows.append(
            f"| {layer} | {float(probe.accuracy):.3f} | {float(probe.selectivity):+.3f} | "
            f"{float(used.accuracy_erased.sel(layer=layer)):.3f} | "
            f"{one[0].mean():+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{placebo.min():+.2f} to {placebo.max():+.2f} |"
        )
    base = ", ".join(
        f"{f.replace('_', ' ')} {float(mean.baseline.sel(feature=f)):.3f}"
        for f in mean.feature.values
    )
    return [
        f"## At {role}", "", f"Majority {float(mean.majority):.3f}; {base}; the metric of the test "
        f"prompts without erasure {float(used.clean.mean()):.2f}. Selectivity (below a control "
        "task) is measured within splits of its own; the accuracy erased is of probes fitted anew.",
        "",
        "| after layer | accuracy | selectivity | accuracy erased | metric's change, erased [95%] "
        "| random erasures |", "| --- | --- | --- | --- | --- | --- |", *rows, "",
        f"![probe]({role}_probe.png)", "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
