"""Exact patching sweeps against TransformerLens, nnsight and hand-batched PyTorch.

Same weights, same prompts, same numbers (checked to 1e-4 before anything is timed), rounds
interleaved in one run::

    python benchmarks/make_peer_env.py peers-env                # torch, transformer-lens
    python benchmarks/make_peer_env.py nnsight-env nnsight      # torch, nnsight
    python benchmarks/sweeps.py --peers peers-env/bin/python --nnsight nnsight-env/bin/python

Without ``--peers`` and ``--nnsight`` only our side and its bound are measured. The table goes
to stdout and to ``benchmarks/results/sweeps.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page
from peers import METHODS, SITES, Peer, peak_rss, reset_peak, timed
from prompts import induction
from roofline import full_forward, hook_loop, rate, sweep_bound

import jaxinterp as ji

MODEL = "smollm2-135m-instruct"
CORRUPTIONS = {"swap_subject": "S2 swapped", "symmetric": "names swapped", "answer": "induction"}
LABELS = {"resid_pre": "residual", "z": "heads", "z_pos": "heads by position"}
ROWS = 128 * 14  # a peer's forward holds so many positions at most
MISSING = {"nnsight": [site for site in SITES if site != "resid_pre"]}  # its recipe is for that


@dataclasses.dataclass
class Case:
    """One sweep: what is patched, on how many prompts."""

    model: ji.Model
    task: ji.Task
    site: str  # one of `peers.SITES`

    @property
    def name(self) -> str:
        n = len(self.task)
        kind, which = LABELS.get(self.site, self.site), CORRUPTIONS[self.task.corruption]
        return f"{kind}, {which}, {n} prompt{'s' if n > 1 else ''}"

    @property
    def ours_site(self) -> str:
        return "z" if self.site == "z_pos" else self.site

    @property
    def over(self) -> tuple[str, ...]:
        axes = {"resid_pre": ("position",), "z_pos": ("head", "position")}
        return ("layer", *axes.get(self.site, ("head",)))

    def ours(self, ledger: ji.Ledger | None = None) -> np.ndarray:
        result = ji.patch(
            self.model, clean=self.task.clean, corrupted=self.task.corrupted,
            site=self.ours_site, over=self.over, metric=self.task.metric, ledger=ledger,
        )  # fmt: skip
        return result.values

    def theirs(self, peer: Peer, method: str, layers: int) -> dict[str, Any]:
        t = self.task
        return peer.sweep(
            method, np.asarray(t.clean.ids), np.asarray(t.corrupted.ids), np.asarray(t.answers),
            np.asarray(t.wrong), site=self.site, limit_layers=layers,
            batch=max(1, ROWS // t.clean.shape[1]),
        )  # fmt: skip

    def layer_positions(self) -> int:
        """The positions that one forward per cell of a layer runs."""
        c, length = self.model.config, self.task.clean.shape[1]
        heads = c.n_kv_heads if self.site in ("k", "v") else c.n_heads
        cells = {"resid_pre": length, "z_pos": heads * length}.get(self.site, heads)
        return cells * length * len(self.task)

    def bound(self) -> int:
        t = self.task
        return sweep_bound(self.model, t.clean, t.corrupted, t.metric, self.ours_site, self.over)

    def hook_loop(self) -> int:
        """The operations of one whole forward per cell and prompt."""
        config, length = self.model.config, self.task.clean.shape[1]
        return hook_loop(config, length, config.n_layers * self.layer_positions() // length)


def layers_timed(case: Case, positions: int) -> int:
    """How many layers a peer is timed on, for about so many positions; two at least."""
    return min(case.model.config.n_layers, max(2, positions // case.layer_positions()))


def check(case: Case, method: str, peer: Peer, layers: int, values: np.ndarray) -> dict[str, Any]:
    """A peer's error and memory. Raises ``SystemExit`` where its numbers are not ours."""
    answer = case.theirs(peer, method, layers)
    run = ~np.isnan(answer["values"])
    error = float(np.abs(answer["values"] - values)[run].max())
    if error > 1e-4:
        raise SystemExit(f"{case.name}: {method} differs by {error:.1e}.")
    return {"error": error, "memory": answer["peak_rss"]}


def measure(case: Case, peers: dict[str, Peer], args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds, after checking that all tell the same numbers."""
    values = case.ours()
    peers = {m: p for m, p in peers.items() if case.site not in MISSING.get(m, [])}
    budget = dict.fromkeys(peers, args.loop_positions) | {"torch_hooks": args.hook_positions}
    layers = {method: layers_timed(case, budget[method]) for method in peers}
    checked = {m: check(case, m, peer, layers[m], values) for m, peer in peers.items()}
    ledger = ji.Ledger()
    reset_peak()
    case.ours(ledger)
    memory = peak_rss()
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    rates = []
    for _ in range(args.rounds):
        rates.append(rate())
        seconds["ours"].append(timed(case.ours)[1])
        for method, peer in peers.items():
            answer = case.theirs(peer, method, layers[method])
            seconds[method].append(answer["seconds_all"])
        if peers:
            seconds["ours"].append(timed(case.ours)[1])
    return {
        "checked": checked, "layers": layers, "memory": memory, "seconds": seconds,
        "rate": statistics.median(rates), "loop": case.hook_loop(), "bound": case.bound(),
        "done": ledger.cost.operations,
    }  # fmt: skip


HEAD = (
    "sweep", "jaxinterp (least to most)",
    *(cell for name in METHODS.values() for cell in (name, "ratio", "max diff")),
    "TFLOP: hook loop / done / bound", "done / bound", "bound at matmul rate", "ours / that",
    "peak GiB",
)  # fmt: skip


def row(case: Case, m: dict[str, Any]) -> list[str]:
    all_ours = m["seconds"]["ours"]
    ours = statistics.median(all_ours)
    cells = [case.name, f"{ours:.2f} s ({min(all_ours):.2f} to {max(all_ours):.2f})"]
    for method in METHODS:
        if method in m["seconds"]:
            theirs = statistics.median(m["seconds"][method])
            part = "*" if m["layers"][method] < case.model.config.n_layers else ""
            error = m["checked"][method]["error"]
            cells += [f"{theirs:.1f} s{part}", f"**{theirs / ours:.1f}x**", f"{error:.0e}"]
        else:
            cells += ["", "", ""]
    at_bound = m["bound"] / m["rate"]
    loop, done, bound = (f"{m[name] / 1e12:.3g}" for name in ("loop", "done", "bound"))
    return [
        *cells, f"{loop} / {done} / {bound}", f"{m['done'] / m['bound']:.2f}",
        f"{at_bound:.2f} s", f"{ours / at_bound:.2f}", f"{m['memory'] / 2**30:.2f}",
    ]  # fmt: skip


def start_peers(args: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Peer]:
    """One process per method, with the model loaded and its threads chosen."""
    pythons = {"transformer_lens": args.peers, "nnsight": args.nnsight, "torch_hooks": args.peers}
    peers = {}
    for method, python in pythons.items():
        if python is not None and method in args.methods:
            peers[method] = stack.enter_context(Peer(python))
            peers[method].ask("load", path=str(ji.fetch(MODEL)))
            peers[method].choose_threads(method)
    return peers


def cases(args: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """Each case, and whether the peers run beside it."""
    model, tokenizer = ji.load(MODEL)
    if "ioi" in args.tasks:
        for site in args.sites:
            for corruption in ("swap_subject", "symmetric"):
                alone = args.alone if site in args.alone_sites else []
                for n in [*args.prompts, *alone]:
                    task = ji.tasks.ioi(tokenizer, n=n, seed=0, corruption=corruption)
                    yield Case(model, task, site), n in args.prompts
    if "induction" in args.tasks:
        task = induction(tokenizer, length=args.length)
        for site in args.induction_sites:
            yield Case(model, task, site), True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="Python with transformer-lens")
    parser.add_argument("--nnsight", type=Path, help="Python with nnsight")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tasks", nargs="+", default=["ioi"], choices=["ioi", "induction"])
    parser.add_argument("--sites", nargs="+", default=list(SITES), choices=SITES)
    parser.add_argument("--induction-sites", nargs="+", default=["resid_pre", "z"], choices=SITES)
    parser.add_argument("--length", type=int, default=128, help="of the induction prompt")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1])
    parser.add_argument("--alone", type=int, nargs="*", default=[8], help="prompts without peers")
    parser.add_argument("--alone-sites", nargs="*", default=["resid_pre", "z"], choices=SITES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--loop-positions", type=int, default=600,
        help="TransformerLens and nnsight are timed on layers of about so many positions",
    )  # fmt: skip
    parser.add_argument("--hook-positions", type=int, default=7000, help="and torch_hooks")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    parser.add_argument("--name", default="sweeps.md", help="of the results' file")
    args = parser.parse_args()

    rows: list[list[str]] = []
    print(page.table(HEAD, rows))
    about: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        peers = start_peers(args, stack)
        for peer in peers.values():
            about |= peer.ask("about")["versions"]
        for case, beside in cases(args):
            rows.append(row(case, measure(case, peers if beside else {}, args)))
            print(page.table(HEAD, rows).splitlines()[-1], flush=True)
            write(args, case, rows, about)  # at every row: a stopped run keeps its own


def write(
    args: argparse.Namespace, case: Case, rows: list[list[str]], about: dict[str, str]
) -> None:
    """The table with its date, machine and method."""
    config = case.model.config
    lengths = (14, args.length) if "induction" in args.tasks else (14,)
    forwards = ", ".join(f"{full_forward(config, t) / 1e9:.1f} GFLOP at T = {t}" for t in lengths)
    page.write(
        args.out, args.name, f"Exact patching sweeps on {MODEL}", page.stamp(about),
        f"Float32. IOI prompts (T = 14) and a repeated random sequence (T = {args.length}); a "
        f"forward takes {forwards}. Medians of {args.rounds} interleaved rounds of whole calls, "
        "both recorded runs included. Ours excludes compilation (once per shape). *: timed on "
        "some of the layers and extrapolated: these methods' cost per cell does not depend on "
        "the layer. Operations done and bound leave out the recorded runs.",
        page.table(HEAD, rows),
        "Empty cells: not run. nnsight's documentation has a recipe for the residual stream "
        "only. Key and value heads are those of grouped-query attention (3 of 9).",
    )  # fmt: skip


if __name__ == "__main__":
    main()
