"""Recording every activation, and generating, against TransformerLens and Hugging Face.

Numbers are compared before anything is timed: activations to 1e-4 (relative to their size),
tokens one by one up to a near-tie of the two likeliest::

    python benchmarks/capture.py --peers peers-env/bin/python

The tables go to stdout and to ``benchmarks/results/capture.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import page
from peers import Peer, peak_rss, reset_peak, timed
from prompts import induction

import jaxinterp as ji
from jaxinterp.model.sites import absent

MODEL = "smollm2-135m-instruct"
METHODS = {"transformer_lens": "TransformerLens", "torch_hooks": "Hugging Face"}
NEAR_TIE = 1e-3  # logits
CHECKED = {  # ours to the Hugging Face module whose output it is
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "mlp_pre": "mlp.gate_proj", "mlp_pre_linear": "mlp.up_proj",
    "mlp_out": "mlp.down_proj", "resid_post": "",
}  # fmt: skip


# Recording


def site_lists(config: ji.Config) -> dict[str, tuple[str, ...]]:
    """What our side records: every site there is, and those TransformerLens keeps as well."""
    missing = absent(config)
    every = tuple(name for name in ji.SITES if name not in missing)
    # TransformerLens keeps these on request only: a stream per head.
    wide = ("q_input", "k_input", "v_input", "result", "mlp_in")
    return {"every site": every, "its sites": tuple(s for s in every if s not in wide)}


def record(model: ji.Model, ids: np.ndarray, names: tuple[str, ...]) -> dict[str, jax.Array]:
    return jax.block_until_ready(ji.forward(model, ids, record=names)).activations


def peer_names(method: str, layer: int) -> dict[str, str]:
    """Our sites to what a peer calls them in a layer."""
    if method == "transformer_lens":
        return {site: f"blocks.{layer}.{ji.SITES[site].hook}" for site in (*CHECKED, "z")}
    start = f"model.layers.{layer}"
    return {site: f"{start}.{module}".rstrip(".") for site, module in CHECKED.items()}


def capture_error(
    method: str, found: dict[str, Any], ours: dict[str, jax.Array], layers: list[int]
) -> float:
    """The largest difference, relative to the largest value of its site and layer."""
    errors = []
    for layer in layers:
        for site, name in peer_names(method, layer).items():
            value = np.asarray(ours[site][layer])
            other = found[name].reshape(value.shape)
            errors.append(np.abs(other - value).max() / np.abs(value).max())
    return float(max(errors))


def capture_row(
    name: str, model: ji.Model, ids: np.ndarray, peers: dict[str, Peer], rounds: int
) -> list[str]:
    """Recording on one batch of prompts: seconds and GiB of each."""
    lists, layers = site_lists(model.config), [0, model.config.n_layers - 1]
    ours = {label: record(model, ids, sites) for label, sites in lists.items()}
    sizes = {label: sum(a.nbytes for a in arrays.values()) for label, arrays in ours.items()}
    asked = {m: [n for i in layers for n in peer_names(m, i).values()] for m in peers}
    seconds: dict[str, list[float]] = {label: [] for label in (*lists, *peers)}
    cells: dict[str, list[str]] = {method: ["", "", ""] for method in METHODS}
    for turn in range(rounds):
        for label, sites in lists.items():
            seconds[label].append(timed(functools.partial(record, model, ids, sites))[1])
        for method, peer in peers.items():
            fields = {"method": method, "names": asked[method], "repeats": 3}
            answer = peer.exchange("capture", {"ids": ids}, **fields)
            seconds[method] += answer["seconds"]
            if not turn:
                error = capture_error(method, answer, ours["every site"], layers)
                if error > 1e-4:
                    raise SystemExit(f"{name}: {method} differs by {error:.1e}.")
                cells[method] = [f"{answer['bytes'] / 2**20:.0f}", f"{error:.0e}"]
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    for method in peers:
        ratio = f"**{medians[method] / medians['its sites']:.1f}x**"
        cells[method] = [
            f"{medians[method]:.3f} s, {cells[method][0]} MiB",
            ratio,
            cells[method][1],
        ]
    own = [f"{medians[label]:.3f} s, {sizes[label] / 2**20:.0f} MiB" for label in lists]
    return [name, *own, *(cell for method in METHODS for cell in cells[method])]


# Generating


def first_difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The first new token [B] that differs, or the number of them."""
    differ = ours != theirs
    return np.where(differ.any(-1), differ.argmax(-1), ours.shape[1])


def agreement(
    model: ji.Model, ids: np.ndarray, new: np.ndarray, theirs: np.ndarray, interventions: Any
) -> str:
    """How many rows are equal; the others must part at a near-tie of the two likeliest."""
    at = first_difference(new, theirs)
    for row in np.flatnonzero(at < new.shape[1]):
        text = np.concatenate([ids[row], new[row, : at[row]]])[None]
        logits = np.asarray(ji.forward(model, text, interventions).logits[0, -1])
        gap = abs(float(logits[new[row, at[row]]] - logits[theirs[row, at[row]]]))
        if gap > NEAR_TIE:
            raise SystemExit(f"Row {row} parts at token {at[row]}, {gap:.1e} logits apart.")
    equal = int((at == new.shape[1]).sum())
    rest = "" if equal == len(at) else f", others up to a near-tie at {at.min()}"
    return f"{equal} of {len(at)} rows equal{rest}"


def generation_row(
    model: ji.Model, ids: np.ndarray, steered: bool, n_new: int, peer: Peer | None, rounds: int
) -> list[str]:
    """Greedy generation after some prompts, plain or with a vector added in the middle."""
    layer = model.config.n_layers // 2
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(model.config.d_model).astype(np.float32)
    given: Any = ji.add("resid_pre", jnp.asarray(vector), layer=layer) if steered else ()

    def ours() -> np.ndarray:
        return np.asarray(ji.generate(model, ids, n_new, interventions=given).new)

    new = ours()
    reset_peak()
    ours()
    memory, mine, theirs, verdict = peak_rss(), [], [], ""
    for _ in range(rounds):
        mine.append(timed(ours)[1])
        if peer is not None:
            fields = {"n_new": n_new, "layer": layer if steered else None, "repeats": 2}
            answer = peer.exchange("generate", {"ids": ids, "vector": vector}, **fields)
            theirs += answer["seconds"]
            verdict = verdict or agreement(model, ids, new, answer["new"], given)
        mine.append(timed(ours)[1])
    tokens = len(ids) * n_new
    speed = tokens / statistics.median(mine)
    cells = ["", "", ""]
    if theirs:
        other = tokens / statistics.median(theirs)
        cells = [f"{other:.1f}", f"**{speed / other:.1f}x**", verdict]
    label = f"batch {len(ids)}, {'vector added before layer ' + str(layer) if steered else 'plain'}"
    return [label, f"{speed:.1f}", *cells, f"{memory / 2**30:.2f}"]


# The page

CAPTURE_HEAD = (
    "prompts", "jaxinterp, every site", "jaxinterp, TransformerLens's sites",
    *(c for name in METHODS.values() for c in (name, "ratio to its sites", "max rel. diff")),
)  # fmt: skip
GENERATE_HEAD = (
    "generation", "jaxinterp, tokens/s", "Hugging Face, tokens/s", "ratio", "tokens", "peak GiB",
)  # fmt: skip


def tables(args: argparse.Namespace, peers: dict[str, Peer], write: Callable[..., None]) -> None:
    """Every row, written as it is made."""
    model, tokenizer = ji.load(MODEL)
    ioi = {n: np.asarray(ji.tasks.ioi(tokenizer, n=n).clean.ids) for n in args.batches}
    long = np.asarray(induction(tokenizer).clean.ids)
    batches = {f"{n} of 14 tokens": ids for n, ids in ioi.items()}
    captured, generated = [], []
    for name, ids in {**batches, f"1 of {long.shape[1]} tokens": long}.items():
        captured.append(capture_row(name, model, ids, peers, args.rounds))
        print(captured[-1], flush=True)
        write(captured, generated)
    for ids in ioi.values():
        for steered in (False, True):
            peer = peers.get("torch_hooks")
            generated.append(
                generation_row(model, ids, steered, args.new, peer, args.rounds)
            )  # fmt: skip
            print(generated[-1], flush=True)
            write(captured, generated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="Python with transformer-lens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    peers: dict[str, Peer] = {}
    about: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for method in METHODS if args.peers else ():
            peers[method] = stack.enter_context(Peer(args.peers))
            peers[method].ask("load", path=str(ji.fetch(MODEL)))
            peers[method].choose_threads(method)
            about |= peers[method].ask("about")["versions"]

        def write(captured: list[list[str]], generated: list[list[str]]) -> None:
            page.write(
                args.out, "capture.md", f"Recording and generating with {MODEL}",
                page.stamp(about),
                f"Float32, medians of {args.rounds} interleaved rounds. Recording: one forward "
                "with logits everywhere that keeps every activation; the methods keep different "
                "ones (Hugging Face: each module's output, so no patterns). Checked in the first "
                "and last layer.", page.table(CAPTURE_HEAD, captured),
                f"Generation: {args.new} greedy tokens after IOI prompts, with the cache, in "
                f"seconds of whole calls. A near-tie: two logits within {NEAR_TIE}.",
                page.table(GENERATE_HEAD, generated),
            )  # fmt: skip

        tables(args, peers, write)


if __name__ == "__main__":
    main()
