"""The exact residual and head sweeps against TransformerLens and hand-batched PyTorch.

Same weights, same prompts, same numbers (checked to 1e-4 before anything is timed), rounds
interleaved in one run::

    python benchmarks/make_peer_env.py peers-env          # once: torch and transformer-lens
    python benchmarks/residual_sweep.py --peers peers-env/bin/python

Without ``--peers`` only our side and its bound are measured. The table goes to stdout and
to ``benchmarks/results/residual_sweep.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from peers import Peer, peak_rss, reset_peak, timed
from roofline import full_forward, head_bound, hook_loop, matmul_rate, residual_bound

import jaxinterp as ji
from jaxinterp.patching import first_difference

MODEL = "smollm2-135m-instruct"
CORRUPTIONS = {"swap_subject": "S2 swapped", "symmetric": "names swapped"}
SITES = {"resid_pre": ("layer", "position"), "z": ("layer", "head")}


@dataclasses.dataclass
class Case:
    """One sweep: what is patched, on how many prompts."""

    model: ji.Model
    task: ji.Task
    site: str
    corruption: str

    @property
    def name(self) -> str:
        kind = "residual" if self.site == "resid_pre" else "heads"
        n = len(self.task)
        return f"{kind}, {CORRUPTIONS[self.corruption]}, {n} prompt{'s' if n > 1 else ''}"

    def ours(self) -> np.ndarray:
        result = ji.patch(
            self.model, clean=self.task.clean, corrupted=self.task.corrupted, site=self.site,
            over=SITES[self.site], metric=self.task.metric,
        )  # fmt: skip
        return result.values

    def theirs(self, peer: Peer, method: str, **options: Any) -> dict[str, Any]:
        t = self.task
        return peer.sweep(
            method, np.asarray(t.clean.ids), np.asarray(t.corrupted.ids), np.asarray(t.answers),
            np.asarray(t.wrong), site=self.site, **options,
        )  # fmt: skip

    def operations(self) -> tuple[float, float]:
        """(a hook loop's, the lower bound's) operations for all prompts."""
        config, length = self.model.config, self.task.clean.shape[1]
        bound = residual_bound if self.site == "resid_pre" else head_bound
        width = length if self.site == "resid_pre" else config.n_heads
        loop = hook_loop(config, length, config.n_layers * width) * len(self.task)
        first = first_difference(self.task.clean, self.task.corrupted)
        return loop, float(sum(bound(config, length, int(p)) for p in first))


def rate() -> float:
    """This machine's float32 matrix products per second, through JAX."""

    def prepare(a: np.ndarray, b: np.ndarray) -> Any:
        x, y = jax.device_put(a), jax.device_put(b)
        product = jax.jit(lambda x, y: jax.lax.dot(x, y, precision="highest"))
        return lambda: jax.block_until_ready(product(x, y))

    return matmul_rate(prepare)


def measure(case: Case, peers: dict[str, Peer], rounds: int, lens_layers: int) -> dict[str, Any]:
    """Medians of interleaved rounds, after checking that all tell the same numbers."""
    values, first_call = timed(case.ours)
    reset_peak()
    case.ours()
    memory = {"ours": peak_rss()}
    error = {}
    options = {"transformer_lens": {"limit_layers": lens_layers}, "torch_hooks": {}}
    for method, peer in peers.items():
        answer = case.theirs(peer, method, **options[method])
        run = ~np.isnan(answer["values"])
        error[method] = float(np.abs(answer["values"] - values)[run].max())
        memory[method] = answer["peak_rss"]
        if error[method] > 1e-4:
            raise SystemExit(f"{case.name}: {method} differs by {error[method]:.1e}.")
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    rates = []
    for _ in range(rounds):
        rates.append(rate())
        seconds["ours"].append(timed(case.ours)[1])
        for method, peer in peers.items():
            answer = case.theirs(peer, method, **options[method])
            seconds[method].append(answer["seconds_all"])
        seconds["ours"].append(timed(case.ours)[1])
    loop, bound = case.operations()
    return {
        "first_call": first_call, "error": error, "memory": memory, "seconds": seconds,
        "rate": statistics.median(rates), "loop": loop, "bound": bound,
    }  # fmt: skip


def row(case: Case, m: dict[str, Any]) -> str:
    ours = statistics.median(m["seconds"]["ours"])
    cells = [case.name, f"{ours:.2f} s"]
    for method in ("transformer_lens", "torch_hooks"):
        if method in m["seconds"]:
            theirs = statistics.median(m["seconds"][method])
            cells += [f"{theirs:.1f} s", f"**{theirs / ours:.1f}x**", f"{m['error'][method]:.0e}"]
        else:
            cells += ["", "", ""]
    at_bound = m["bound"] / m["rate"]
    cells += [
        f"{m['loop'] / 1e12:.2f} / {m['bound'] / 1e12:.3f}", f"{at_bound:.2f} s",
        f"{ours / at_bound:.2f}", f"{m['memory']['ours'] / 2**30:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEADER = """\
| sweep | jaxinterp | TransformerLens | ratio | max diff | hand-batched PyTorch | ratio \
| max diff | TFLOP, hook loop / bound | bound at matmul rate | ours / bound | peak GiB |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="the peers' Python; see make_peer_env.py")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1])
    parser.add_argument("--alone", type=int, nargs="*", default=[8], help="prompts without peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lens-layers", type=int, default=3, help="layers timed per round")
    parser.add_argument("--sites", nargs="+", default=list(SITES), choices=list(SITES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    gguf = ji.fetch(MODEL)
    model, tokenizer = ji.load(MODEL)
    lines, about = [], {}
    with contextlib.ExitStack() as stack:
        peers = {}
        if args.peers:
            for method in ("transformer_lens", "torch_hooks"):
                peer = stack.enter_context(Peer(args.peers))
                peer.ask("load", path=str(gguf))
                times = {}
                for n in (1, os.cpu_count() or 1):
                    peer.ask("threads", n=n)
                    times[n] = peer.ask("forward", method=method, batch=1, length=14)["median"]
                peer.ask("threads", n=min(times, key=times.__getitem__))
                about = peer.ask("about")["versions"]
                peers[method] = peer
        for site, corruption in itertools.product(args.sites, CORRUPTIONS):
            for n in [*args.prompts, *args.alone]:
                task = ji.tasks.ioi(tokenizer, n=n, seed=0, corruption=corruption)
                case = Case(model, task, site, corruption)
                beside = peers if n in args.prompts else {}
                lines.append(row(case, measure(case, beside, args.rounds, args.lens_layers)))
                print(lines[-1], flush=True)
                text = page(case, lines, about, args)  # at every row: a stopped run keeps its own
                args.out.mkdir(exist_ok=True)
                (args.out / "residual_sweep.md").write_text(text)


def page(case: Case, lines: list[str], about: dict[str, str], args: argparse.Namespace) -> str:
    """The table with its date, machine and method."""
    config, length = case.model.config, case.task.clean.shape[1]
    forward = full_forward(config, length)
    versions = {"jax": jax.__version__, "numpy": np.__version__, **about}
    return "\n".join(
        [
            "# Exact patching sweeps on SmolLM2-135M, IOI prompts", "",
            f"{datetime.date.today()}; {os.cpu_count()} cores ({platform.machine()}), "
            f"{jax.default_backend()}, float32; matrix products at {rate() / 1e9:.0f} GFLOP/s; "
            f"T = {length} (one forward: {forward / 1e9:.2f} GFLOP); "
            + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".", "",
            f"Medians of {args.rounds} interleaved rounds of whole calls (both recorded runs "
            f"included). TransformerLens is timed on {args.lens_layers} of "
            f"{config.n_layers} layers per round and extrapolated: its cost per cell does "
            "not depend on the layer. Ours excludes compilation (once per shape).", "",
            HEADER, *lines, "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
