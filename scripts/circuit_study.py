"""One circuit study from task to report.

Task accuracy, sweeps, head roles by their own tests, a discovered circuit, its faithfulness,
completeness and minimality with intervals, CPR and CMD beside random circuits, specificity on other
tasks; then a report that says what was found, of what, and no more::

    python scripts/circuit_study.py --task ioi --out runs/ioi-study
    python scripts/circuit_study.py --task greater_than --other ioi subject_verb_agreement

Minutes to an hour on two cores; what is finished is kept, and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import circuits, report, results, stats
from jaxinterp.cli.output import begin

# (role, from position, to position, what else it must do). A head has a role where it attends there
# by more than ATTENDS and its effect has the role's sign, beyond chance. Roles that are known from
# other text too are tested there: on random tokens said twice (`on_repeats`).
ROLES: dict[str, list[tuple[str, str, str, str]]] = {
    "ioi": [
        ("name mover", "END", "IO", "writes the answer"),
        ("negative name mover", "END", "IO", "writes against the answer"),
        ("S-inhibition", "END", "S2", "tells the name movers"),
        ("duplicate token", "S2", "S1", "matters"),
        ("induction", "S2", "S1+1", "matters"),
        ("previous token", "S1+1", "S1", "matters"),
    ],
    "greater_than": [
        ("year reader", "END", "tens", "matters"),
        ("year reader", "END", "YY", "matters"),
        ("year writer", "END", "tens", "writes the answer"),
        ("year writer", "END", "YY", "writes the answer"),
    ],
}
ATTENDS = 0.25


class Study:
    """The steps share a folder; each leaves a file and is not run again."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out
        self.model, self.tokenizer = ji.load(args.model)
        given = {**vars(args), "weights": ji.results.weights_digest(self.model)}
        begin(self.out, "circuit_study", given)  # steps are not run again: they must be these
        self.task = ji.tasks.make(args.task, self.tokenizer, n=args.n, seed=args.seed)
        self.few = self.task[: args.few]
        self.graph = circuits.Graph(self.model.config)
        c = self.model.config
        self.heads = [f"a{l}.h{h}" for l in range(c.n_layers) for h in range(c.n_heads)]
        self.lines: list[str] = []

    def twins(self, task: ji.Task) -> dict[str, Any]:
        return {"clean": task.clean, "corrupted": task.corrupted, "metric": task.metric}

    def step(self, name: str, total: int, run: Callable[[Callable[[int], None]], Any]) -> Any:
        """A labelled result, from its file if it is there already."""
        path = self.out / f"{name}.nc"
        if path.exists():
            found = results.load(path)
            if found.attrs.get("study") == self.key():
                return found
        with tqdm(total=total, desc=name, unit=" exp", unit_scale=True) as bar:
            found = run(bar.update)
        results.save(found.assign_attrs(study=self.key()), path)
        return found

    def key(self) -> str:
        return json.dumps([self.model.revision, self.task.record()["sha256"], self.args.few])

    def say(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)


def abilities(study: Study) -> None:
    """Whether there is something to explain."""
    ability = ji.tasks.check(study.model, study.task)
    study.say(
        "## Can the model do it?", "",
        f"{len(study.task)} prompts, such as: `{study.task.clean_text[0]}` (corrupted: "
        f"`{study.task.corrupted_text[0]}`).", "",
        "| | clean | corrupted |", "| --- | --- | --- |",
        *(
            f"| {name} | {ability[f'clean_{name}']:.3f} | {ability[f'corrupted_{name}']:.3f} |"
            for name in sorted({key.split("_", 1)[1] for key in ability})
        ), "",
    )  # fmt: skip


def sweeps(study: Study) -> xr.DataArray:
    """Exact patching of the stream and of heads; pictures. Returns the heads'."""
    task, found = study.task, {}
    for site, over in (("resid_pre", ("layer", "position")), ("z", ("layer", "head"))):
        found[site] = study.step(
            f"patch_{site}", len(task) * study.model.config.n_layers * (
                task.clean.shape[1] if site == "resid_pre" else study.model.config.n_heads),
            lambda done, site=site, over=over: ji.patch(
                study.model, **study.twins(task), site=site, over=over, on_done=done,
                tokenizer=study.tokenizer, names=task.labels(), parts=str(study.out / ".parts"),
            ),
        )  # fmt: skip
        report.heatmap(found[site], study.out / f"{site}.png")
    report.write_report(found, study.out / "sweeps.html", title=f"{task.name}: patching")
    study.say(
        "## Where it is decided", "",
        "![residual stream](resid_pre.png)", "", "![heads](z.png)", "",
        "Denoising; exact. Interactive: [sweeps.html](sweeps.html).", "",
    )  # fmt: skip
    return found["z"]


def attention(study: Study) -> dict[tuple[str, str], np.ndarray]:
    """The mean attention [L H] between roles, over prompts."""
    task = study.task
    record = jax.jit(lambda m, t: ji.forward(m, t, record=("pattern",)).activations["pattern"])
    patterns = np.concatenate(
        [np.asarray(record(study.model, task.clean[i : i + 8])) for i in range(0, len(task), 8)], 1
    )
    rows = np.arange(len(task))
    return {
        (a, b): patterns[:, rows, :, task.roles[a], task.roles[b]].mean(0)
        for _, a, b, _ in ROLES.get(task.name, [])
        if a in task.roles and b in task.roles
    }


def on_repeats(study: Study, n: int = 8, length: int = 30) -> dict[str, np.ndarray]:
    """The mean attention [L*H] of each token's second saying to its first (and the one after it),
    and of every token to the one before: Olsson et al. 2022, arXiv:2209.11895."""
    rng = np.random.default_rng(study.args.seed)
    once = rng.integers(1000, study.model.config.vocab_size, (n, length))
    out = ji.forward(study.model, np.concatenate([once, once], 1), record=("pattern",))
    pattern = np.asarray(out.activations["pattern"]).mean(1)  # [L H P P]
    ahead = np.arange(length, 2 * length)
    found = {
        "duplicate token": pattern[..., ahead, ahead - length],
        "induction": pattern[..., ahead, ahead - length + 1],
        "previous token": pattern[..., ahead, ahead - 1],
    }
    return {role: looks.mean(-1).reshape(-1) for role, looks in found.items()}


def head_effects(study: Study, patched: xr.DataArray) -> dict[str, np.ndarray]:
    """What each head [L*H] does, per prompt: it matters; it writes the answer."""
    into = [f"{head}->logits" for head in study.heads]
    direct = study.step(
        "direct", len(into) * len(study.task),
        lambda done: circuits.patch_edges(
            study.model, **study.twins(study.task), edges=into, on_done=done
        ),
    )  # fmt: skip
    writes = -stats.effects(direct).values
    return {
        "matters": stats.effects(patched).values.reshape(writes.shape),
        "writes the answer": writes,
        "writes against the answer": -writes,
    }


def told_to(study: Study, movers: list[str]) -> np.ndarray:
    """What each head [L*H] tells the name movers' queries by direct paths, per prompt."""
    found = study.step(
        "paths_to_movers", len(study.heads) * len(study.task),
        lambda done: circuits.patch_paths(
            study.model, **study.twins(study.task), receivers=[f"{m}<q>" for m in movers],
            on_done=done,
        ),
    )  # fmt: skip
    row = {name: i for i, name in enumerate(found["sender"].values.tolist())}
    effect = -stats.effects(found).values
    silent = np.zeros(effect.shape[1])  # a head that is not before any name mover
    return np.stack([effect[row[h]] if h in row else silent for h in study.heads])


def passing(effect: np.ndarray, looks: np.ndarray) -> list[tuple[int, list[str]]]:
    """Heads that look there and have the effect, with what a table says of them."""
    per_prompt = xr.DataArray(effect, dims=("head", "prompt"))
    p = np.asarray(stats.holm(stats.paired_permutation(per_prompt)["p"]))
    ci, mean = stats.bootstrap(per_prompt), effect.mean(-1)
    found = np.flatnonzero((looks > ATTENDS) & (mean > 0) & (p < 0.05))
    return [
        (int(i), [f"{mean[i]:.3f} [{float(ci['low'][i]):.3f}, "
                  f"{float(ci['high'][i]):.3f}]", f"{p[i]:.1g}"])
        for i in found[np.argsort(-mean[found])][:8]
    ]  # fmt: skip


def head_roles(study: Study, patched: xr.DataArray) -> dict[str, str]:
    """Heads that pass their role's own test, corrected over all heads (Holm, 5%)."""
    effects, seen = head_effects(study, patched), attention(study)
    repeats = on_repeats(study)
    roles: dict[str, str] = {}
    rows: list[list[str]] = []
    for role, a, b, what in ROLES.get(study.task.name, []):
        movers = [head for head, its in roles.items() if its == "name mover"][:5]
        if what == "tells the name movers" and movers:
            effects[what] = told_to(study, movers)
        if (a, b) not in seen or what not in effects:
            continue
        here = seen[a, b].reshape(-1)
        own = repeats.get(role, here)
        for i, cells in passing(effects[what], own):
            roles.setdefault(study.heads[i], role)
            looks = (f"{here[i]:.2f}", f"{own[i]:.2f}" if role in repeats else "")
            rows.append([role, study.heads[i], f"{a} to {b}", *looks, what, *cells])
    head = (
        "role", "head", "looks from", "attention", "on repeats", "test", "effect [95%]", "p",
    )  # fmt: skip
    study.say(
        "## Heads by role", "",
        f"A head has a role if its mean attention is above {ATTENDS} (for duplicate-token, "
        "induction and previous-token heads: on random tokens said twice) and its effect passes a "
        "sign-flip test over prompts (p below 0.05 after Holm's correction over all heads). The "
        "strongest eight of each. *Writes*: what its direct path to the logits carries (edge "
        "exchanged); *matters*: what patching it restores; *tells*: what its direct paths into "
        "the name movers' queries carry. In the metric's unit.", "",
        *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), "",
    )  # fmt: skip
    missing = {role for role, *_ in ROLES.get(study.task.name, [])} - {row[0] for row in rows}
    if missing:
        study.say(f"No head passed as: {', '.join(sorted(missing))}.", "")
    return roles


def discover(study: Study, roles: dict[str, str]) -> tuple[circuits.Circuit, np.ndarray]:
    """Scores of all edges; the smallest circuit of a ladder that is faithful; its picture."""
    task, args = study.task, study.args
    scored = study.step("edges_eap_ig", len(task), lambda done: circuits.attribute_edges(
        study.model, **study.twins(task), method="eap-ig-inputs", steps=args.steps,
        on_done=done))  # fmt: skip
    scores = np.asarray(circuits.importance(scored))
    ladder = [round(s * study.graph.n_edges) for s in np.geomspace(0.0005, 0.2, 16)]
    chosen = [circuits.greedy_edges(study.model, scores, n) for n in ladder]
    value = study.step("ladder", len(ladder) * len(task), lambda done: circuits.evaluate_circuits(
        study.model, chosen, **study.twins(task), on_done=done))  # fmt: skip
    faithful = np.asarray(circuits.faithfulness(value))
    enough = np.flatnonzero(faithful >= args.faithful)
    circuit = chosen[enough[0] if len(enough) else -1]
    circuit.save(study.out / "circuit.json")
    circuit.save(study.out / "circuit.mib.json", "mib")
    report.draw_circuit(circuit, study.out / "circuit.png", weights=scores, roles=roles,
                        title=f"{task.name} in {study.model.name}")  # fmt: skip
    study.say(
        "## The circuit", "",
        f"The smallest of {len(ladder)} circuits grown from edge scores (EAP-IG over inputs, "
        f"{args.steps} steps, greedy from the logits) whose faithfulness reaches "
        f"{args.faithful}: {circuit}.", "", "![circuit](circuit.png)", "",
        "| edges | faithfulness |", "| --- | --- |",
        *(f"| {len(c)} | {f:.3f} |" for c, f in zip(chosen, faithful, strict=True)), "",
    )  # fmt: skip
    return circuit, scores


def judge(study: Study, circuit: circuits.Circuit, scores: np.ndarray) -> None:
    """Faithfulness with its interval, CPR and CMD beside random, completeness, minimality."""
    task, few = study.task, study.few
    value = circuits.evaluate_circuits(study.model, [circuit], **study.twins(task))

    def ratio(rows: np.ndarray, axis: int = -1) -> Any:
        return (rows[0] - rows[2]).mean(axis) / (rows[1] - rows[2]).mean(axis)

    triple = np.stack([value.values[0], value.clean.values, value.corrupted.values])
    draws = np.random.default_rng(0).integers(0, len(task), (2000, len(task)))
    low, high = np.percentile(ratio(triple[:, draws]), (2.5, 97.5))
    study.say(
        "## How good it is", "",
        f"Faithfulness {float(ratio(triple)):.3f} (95% bootstrap over prompts {low:.3f} to "
        f"{high:.3f}), with {circuit.share:.2%} of the edges; outside edges carry the corrupted "
        "run's values.", "",
    )  # fmt: skip
    rng = np.random.default_rng(study.args.seed)
    random = [rng.standard_normal(study.graph.n_edges) for _ in range(3)]
    area: dict[str, list[list[float]]] = {"scores": [], "random": []}
    for kind, each in (("scores", [scores]), ("random", random)):
        for s in each:
            pair = []
            for signed in (True, False):
                curve = circuits.faithfulness_curve(
                    study.model, s, signed=signed, select="top", **study.twins(few)
                )
                pair.append(circuits.cpr(curve) if signed else circuits.cmd(curve))
            area[kind].append(pair)
    mean = {kind: np.mean(pairs, 0) for kind, pairs in area.items()}
    study.say(
        f"Over the MIB benchmark's edge fractions, {len(few)} prompts (CPR takes edges by signed "
        "score: circuits without what works against the answer exceed 1; CMD by size):", "",
        "| | CPR (higher is better) | CMD (lower is better) |", "| --- | --- | --- |",
        f"| EAP-IG scores | {mean['scores'][0]:.3f} | {mean['scores'][1]:.3f} |",
        f"| random scores (mean of 3) | {mean['random'][0]:.3f} | {mean['random'][1]:.3f} |", "",
    )  # fmt: skip
    knocked = circuits.incompleteness(
        study.model, circuit, samples=study.args.samples, **study.twins(few)
    )
    worst, nodes = circuits.worst_incompleteness(knocked)
    gap = float((knocked.clean - knocked.corrupted).mean())
    per_set = np.abs(knocked.sel(of="circuit") - knocked.sel(of="model")).mean("prompt")
    study.say(
        f"Incompleteness over {study.args.samples} random knock-outs of half of its nodes: at "
        f"most {worst:.3f} ({worst / gap:.0%} of the whole effect), on average "
        f"{float(per_set.mean()):.3f}. The worst removes {len(nodes.split(', '))} nodes.", "",
    )  # fmt: skip
    needed = circuits.minimality(
        study.model, circuit, samples=study.args.contexts, **study.twins(few)
    )
    idle = [n for n, m in zip(needed["node"].values, needed.values, strict=True) if m < 0.01]
    study.say(
        f"Minimality: {len(needed) - len(idle)} of {len(needed)} nodes matter by "
        f"1% of the effect or more, alone or where a random half of the others is knocked out "
        f"too ({study.args.contexts} drawn); those that do not: "
        f"{', '.join(idle) or 'none'}.", "",
    )  # fmt: skip


def specific(study: Study, circuit: circuits.Circuit) -> None:
    """The same circuit on behaviours it should not explain, beside each one's own ability."""
    tasks = {study.task.name: study.task}
    for name in study.args.other:
        tasks[name] = ji.tasks.make(name, study.tokenizer, n=study.args.few, seed=study.args.seed)
    found = circuits.specificity(study.model, circuit, tasks)
    rows = []
    for name, value in found.items():
        ability = ji.tasks.check(study.model, tasks[name])
        f = float(circuits.faithfulness(value)[0])
        rows.append(
            f"| {name} | {ability['clean_preferred']:.2f} | {float(value.clean.mean()):.3f} | "
            f"{float(value.corrupted.mean()):.3f} | {float(value.mean()):.3f} | {f:.3f} |"
        )
    study.say(
        "## Is it about this behaviour?", "",
        f"The task's metric of the whole model, on {len(study.task)} prompts of this task and "
        f"{study.args.few} of the others: m(M) as it is, m(0) on the corrupted prompts, m(C) by "
        "the circuit alone, all other edges carrying the corrupted run.", "",
        "| task | model prefers the answer | m(M) | m(0) | m(C) | faithfulness |",
        "| --- | --- | --- | --- | --- | --- |", *rows, "",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--few", type=int, default=8, help="prompts of the costly measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--samples", type=int, default=32, help="knock-outs for completeness")
    parser.add_argument("--contexts", type=int, default=2, help="of each node, for minimality")
    parser.add_argument("--faithful", type=float, default=0.8)
    parser.add_argument("--other", nargs="*", default=["greater_than", "subject_verb_agreement"])
    parser.add_argument("--out", type=Path, default=Path("runs/circuit-study"))
    args = parser.parse_args()
    began = time.perf_counter()
    study = Study(args)
    study.say(f"# {args.task} in {study.model.name}", "")
    abilities(study)
    patched = sweeps(study)
    roles = head_roles(study, patched)
    circuit, scores = discover(study, roles)
    judge(study, circuit, scores)
    specific(study, circuit)
    minutes = (time.perf_counter() - began) / 60
    record = study.task.record()
    study.say(
        "## What this says, and what it does not", "",
        f"On {len(study.task)} prompts of one task (seed {args.seed}, corruption "
        f"{record['corruption']!r}, sha256 {record['sha256'][:12]}) in one model "
        f"({study.model.name}, {study.model.revision[:12]}), with edges exchanged for those of the "
        "corrupted run at all positions, this set of edges gives the stated share of the metric's "
        "difference. It is not shown that other prompts, other ablations or other metrics give "
        "the same circuit, nor that no other circuit does as well; edges were scored by "
        "gradients, which miss what is saturated or backed up.", "",
        f"jaxinterp {ji.__version__}, jax {jax.__version__}, {jax.default_backend()}, "
        f"{minutes:.0f} minutes (steps kept from an earlier run are not counted).",
    )  # fmt: skip
    (args.out / "report.md").write_text("\n".join(study.lines) + "\n", encoding="utf-8")
    print(f"\nWrote {args.out / 'report.md'}")


if __name__ == "__main__":
    main()
