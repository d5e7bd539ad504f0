"""The commands about edges, paths and circuits: each is thin over the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxinterp.cli.commands import OfJob
from jaxinterp.cli.job import Job, Setting, bar, pictures, say
from jaxinterp.files import whole

if TYPE_CHECKING:
    import xarray as xr

    from jaxinterp.circuits import Circuit


def edges(
    job: OfJob = Job(),
    direction: Literal["denoise", "noise"] = "noise",
    method: Literal["exact", "eap", "eap-ig-inputs", "eap-ig-activations", "ig-edges"] = "exact",
    steps: int = 5,
    show: int = 200,
) -> None:
    """Patch every edge of the model by itself (or estimate that) and draw the strongest.

    Args:
        job: The prompts, the model, and where results go.
        direction: Noise: corrupted values into the clean run; denoise: the reverse.
        method: Exact, or an estimate from gradients.
        steps: Of the estimates that integrate.
        show: Edges in the picture.
    """
    given = locals()
    from jaxinterp import circuits

    with job.start("edges", given) as setting:
        result = _scores(setting, method, direction, steps)
        written = setting.save({"edges": result})
        weights = circuits.importance(result)
        n = min(show, len(weights))
        circuit = circuits.top_edges(setting.model, weights, n, pruned=False)
        written += _draw(setting, circuit, weights, f"{setting.task.name}: the {n} strongest edges")
        setting.finish(written)


def paths(
    receivers: tuple[str, ...],
    job: OfJob = Job(),
    senders: tuple[str, ...] = (),
    through: tuple[str, ...] = (),
    direction: Literal["denoise", "noise"] = "noise",
) -> None:
    """Path patching: from every sender to the receivers.

    Args:
        receivers: What reads, such as a9.h6<q>, m10 or logits.
        job: The prompts, the model, and where results go.
        senders: What writes, such as a5.h1; by default all that write before.
        through: Nodes on the way that answer: names, or heads or mlps for all of a kind.
        direction: Noise: corrupted values into the clean run; denoise: the reverse.
    """
    given = locals()
    from jaxinterp import circuits, report

    with job.start("paths", given) as setting:
        graph = circuits.Graph(setting.model.config)
        into = [graph.receiver_index(name) for name in receivers]
        count = len(senders) or int(graph.exists[into].any(0).sum())
        with bar(count * len(setting.task), "experiments") as progress:
            result = circuits.patch_paths(
                setting.model, **setting.twins, receivers=receivers, senders=senders or None,
                through=through, direction=direction, batch=setting.batch, parts=setting.parts,
                record=setting.record, on_done=progress.update,
            )  # fmt: skip
        written = setting.save({"paths": result})
        title = f"{setting.task.name}: paths into {', '.join(receivers)} of {setting.model.name}"
        written.append(
            report.write_report({"paths": result}, setting.out / "report.html", title=title)
        )
        if pictures():
            report.spread(result, setting.out / "paths.png", k=min(20, count))
            written.append(setting.out / "paths.png")
        setting.finish(written)


def discover(
    job: OfJob = Job(),
    method: Literal["exact", "eap", "eap-ig-inputs", "eap-ig-activations", "ig-edges"] = (
        "eap-ig-inputs"
    ),
    share: float = 0.02,
    select: Literal["top", "greedy"] = "greedy",
    threshold: float = 0.0,
    steps: int = 5,
) -> None:
    """Find a circuit: the best-scored edges, pruned further by ACDC with --threshold.

    Args:
        job: The prompts, the model, and where results go.
        method: Where the edges' scores come from.
        share: Of all edges, how many to keep.
        select: The best edges, or the best that lead to the logits.
        threshold: ACDC's, in the metric's unit; 0: no further pruning.
        steps: Of the estimates that integrate.
    """
    given = locals()
    from jaxinterp import circuits

    if not 0 < share <= 1:
        raise ValueError(f"--share {share}: a fraction of the edges, above 0 and at most 1.")
    with job.start("discover", given) as setting:
        scores = circuits.importance(_scores(setting, method, "noise", steps))
        choose = {"top": circuits.top_edges, "greedy": circuits.greedy_edges}[select]
        circuit = choose(setting.model, scores, max(1, round(share * len(scores))))
        if not len(circuit):
            raise ValueError(f"No path of edges is left among {share:.2%}: give a larger --share.")
        say(f"{circuit} from scores")
        if threshold > 0:
            with bar(len(circuit), "edges") as progress:
                found: Any = circuits.acdc(
                    setting.model, **setting.twins, threshold=[threshold], start=circuit,
                    on_done=progress.update,
                )  # fmt: skip
            circuit = found[0]
            say(f"{circuit} after ACDC")
        written = [circuit.save(setting.out / "circuit.json")]
        written += _judge(setting, {"circuit": circuit})
        written += _draw(setting, circuit, scores, f"{setting.task.name} in {setting.model.name}")
        setting.finish(written)


def evaluate(
    circuit: tuple[Path, ...],
    job: OfJob = Job(),
    alternative: Literal["run", "zero"] = "run",
) -> None:
    """How faithful circuits (JSON files) are on a task.

    Args:
        circuit: Files of this library or of the MIB benchmark.
        job: The prompts, the model, and where results go.
        alternative: What edges outside carry: the corrupted run's values, or zero.
    """
    given = locals()
    from jaxinterp import circuits

    with job.start("evaluate", given) as setting:
        found = {path.stem: circuits.Circuit.load(path, setting.model) for path in circuit}
        setting.finish(_judge(setting, found, alternative))


def _scores(setting: Setting, method: Any, direction: Any, steps: int) -> xr.DataArray:
    """Every edge's effect, exact or estimated."""
    from jaxinterp import circuits

    options: dict[str, Any] = {
        **setting.twins, "direction": direction, "tokenizer": setting.tokenizer,
        "record": setting.record,
    }  # fmt: skip
    n_edges = circuits.Graph(setting.model.config).n_edges
    if method == "exact":
        with bar(n_edges * len(setting.task), "edges") as progress:
            return circuits.patch_edges(
                setting.model, **options, parts=setting.parts, on_done=progress.update
            )
    with bar(len(setting.task), "prompts") as progress:
        return circuits.attribute_edges(
            setting.model, **options, method=method, steps=steps, on_done=progress.update
        )


def _judge(setting: Setting, found: dict[str, Circuit], alternative: str = "run") -> list[Path]:
    """m(C), faithfulness and size of circuits; written and printed."""
    from jaxinterp import circuits, results

    result = circuits.evaluate_circuits(
        setting.model, found, **setting.twins, alternative=alternative, batch=setting.batch,
        record=setting.record,
    )  # fmt: skip
    faithful = circuits.faithfulness(result)
    table, said = [], []
    for name, circuit in found.items():
        row = {
            "circuit": name, "edges": len(circuit), "share": circuit.share,
            "metric": float(result.sel(circuit=name).mean()),
            "faithfulness": float(faithful.sel(circuit=name)),
        }  # fmt: skip
        table.append(row)
        said.append(
            f"{name}: {circuit}; {setting.task.metric.name} {row['metric']:.3f} of "
            f"{float(result.clean.mean()):.3f} (no edges: {float(result.corrupted.mean()):.3f}); "
            f"faithfulness {row['faithfulness']:.3f}"
        )
    written = [results.save(result, setting.out / "circuits.nc")]
    with whole(setting.out / "faithfulness.json") as file:
        file.write_text(json.dumps(table, indent=2), encoding="utf-8")
    print("\n".join(said))
    return [*written, setting.out / "faithfulness.json"]


def _draw(setting: Setting, circuit: Circuit, weights: Any, title: str) -> list[Path]:
    from jaxinterp import report

    if not pictures():
        return []
    path = setting.out / "circuit.png"
    report.draw_circuit(circuit, path, weights=np.asarray(weights), title=title)
    return [path]
