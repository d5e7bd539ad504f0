"""The commands that read and steer: each is thin over the library."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxinterp.cli.commands import OfJob
from jaxinterp.cli.job import MODEL, Job, bar, load_model, say, write_results
from jaxinterp.cli.output import output


def lens(
    text: tuple[str, ...],
    model: str = MODEL,
    lens: Path | None = None,
    colour: Literal["probability", "kl", "entropy"] = "probability",
    top: int = 5,
    out: Path = Path("runs/lens"),
    overwrite: bool = False,
) -> None:
    """Read every layer's residual stream as if it were the last: the logit lens, or a fitted one.

    Args:
        text: Prompts.
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        lens: A folder with a tuned or Jacobian lens; by default the logit lens.
        colour: Of the picture's cells.
        top: Tokens kept per cell.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import lens as room
    from jaxinterp import report

    with output(out, "lens", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        fitted = None if lens is None else room.load(lens)
        found = room.read(net, tokenizer(list(text)), fitted, top=top, tokenizer=tokenizer)
        end = found.isel(position=int(np.isfinite(found.kl.isel(layer=0, prompt=0)).sum()) - 1)

        def picture(prompt: int) -> Callable[[Path], Any]:
            return lambda path: report.lens_table(found, path, prompt=prompt, colour=colour)

        draw = {f"lens_{p}": picture(p) for p in found.prompt.values.tolist()}
        write_results(place, {"lens": found}, draw)
    for layer in found.layer.values:
        best = end.sel(layer=layer, prompt=0)
        said = " ".join(repr(str(t)) for t in best.top_text.values)
        print(f"{layer:>3}  KL {float(best.kl):7.3f}  {said}")


def dla(
    job: OfJob = Job(), by: Literal["layer", "head", "neuron"] = "head", show: int = 15
) -> None:
    """Direct logit attribution: what each component writes towards the answer.

    Args:
        job: The prompts, the model, and where results go.
        by: Components: layers, heads and MLPs, or neurons too.
        show: The largest components to print and draw.
    """
    given = locals()
    from jaxinterp import decomposition, report

    with job.start("dla", given) as setting:
        task = setting.task
        found = decomposition.attribute_logits(
            setting.model, task.clean, task.answers, task.wrong, by=by, batch=setting.batch,
            record=setting.record,
        )  # fmt: skip
        top = decomposition.top_components(found, show)
        title = f"{task.name} in {setting.model.name}: direct logit attribution"
        draw = {"dla": lambda path: report.component_bars(top, path, title=title)}
        write_results(setting.out, {"dla": found}, draw)
    for name, value in zip(top.component.values, top.mean("prompt").values, strict=True):
        print(f"{name:>12}  {value:+.3f}")


def heads(
    model: str = MODEL, n: int = 16, length: int = 32, seed: int = 0, by_value: bool = False,
    show: int = 8, text: str = "", out: Path = Path("runs/heads"), overwrite: bool = False,
) -> None:  # fmt: skip
    """Score every head on random tokens said twice: previous token, duplicate token, induction.

    Args:
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        n: Sequences.
        length: Tokens that are said twice.
        seed: Of the tokens.
        by_value: Weigh attention by the size of what is moved.
        show: Heads to print of each kind.
        text: The prompt of the page of attention; by default the first sequence.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import heads as room
    from jaxinterp import report

    with output(out, "heads", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        tokens = room.repeated_tokens(net, n=n, length=length, seed=seed, bos=tokenizer.bos)
        found = {}
        for kind in ("previous_token", "duplicate_token", "induction"):
            found[kind] = room.pattern_scores(net, tokens, kind, by_value=by_value)

        def picture(kind: str) -> Callable[[Path], Any]:
            return lambda path: report.score_map(found[kind], path, title=kind)

        draw = {kind: picture(kind) for kind in found}
        write_results(place, found, draw)
        seen = room.attention(net, text or tokens[:1], tokenizer=tokenizer, by_value=by_value)
        title = f"Attention in {net.name}"
        say(f"Wrote {report.attention_view(seen, title=title).save(place / 'attention.html')}")
    for kind, scores in found.items():
        flat = scores.mean("prompt").stack(cell=("layer", "head"))
        best = flat.isel(cell=np.argsort(-flat.values)[:show])
        cells = zip(best["layer"].values, best["head"].values, best.values, strict=True)
        print(f"{kind}: " + "  ".join(f"{a}.{h} {v:.2f}" for a, h, v in cells))


def neurons(
    corpus: Path,
    layer: int,
    neuron: tuple[int, ...],
    model: str = MODEL,
    k: int = 8,
    length: int = 128,
    batch: int = 8,
    batches: int = 64,
    out: Path = Path("runs/neurons"),
    overwrite: bool = False,
) -> None:
    """What activates neurons in a corpus, and which tokens they raise and lower.

    Args:
        corpus: A .txt, .jsonl, .csv or .parquet file, or a folder of them.
        layer: The neurons' layer.
        neuron: Their numbers.
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        k: Examples of each.
        length: Tokens per block.
        batch: Blocks per program call.
        batches: Of the corpus, at most.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    import itertools

    from jaxinterp import corpora
    from jaxinterp import neurons as room

    with output(out, "neurons", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        written = room.written_tokens(net, layer, neuron, k=k, tokenizer=tokenizer)
        stream = corpora.packed(corpora.open_texts(corpus), tokenizer, length, batch)
        with bar(batches * batch * length, "tokens") as progress:
            found = room.top_examples(
                net, itertools.islice(stream, batches), k=k, layers=[layer], tokenizer=tokenizer,
                on_done=progress.update,
            )  # fmt: skip
        found = found.sel(neuron=list(neuron))
        write_results(place, {"examples": found, "written": written}, {})
    for n in neuron:
        print(f"\nNeuron {layer}.{n}")
        for end in ("raised", "lowered"):
            texts = written.text.sel(neuron=n, end=end).values
            print(f"  {end}: {' '.join(map(repr, map(str, texts)))}")
        one = found.sel(layer=layer, neuron=n)
        for value, text in zip(one.value.values, one.text.values, strict=True):
            print(f"  {value:8.3f}  {str(text)!r}")


def probe(
    data: Path,
    model: str = MODEL,
    position: int = -1,
    splits: int = 5,
    seed: int = 0,
    out: Path = Path("runs/probe"),
    overwrite: bool = False,
) -> None:
    """Probe every layer for labels, with baselines. It says what is decodable, not what is used.

    Args:
        data: A .csv or .jsonl file with the fields text and label, and perhaps group.
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        position: Where to probe, in each text; negative: from its end.
        splits: Into training, validation and test.
        seed: Of the splits.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import points, probes, report

    rows = _rows(data, "text", "label")
    with output(out, "probe", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        tokens = tokenizer([row["text"] for row in rows])
        groups = [row.get("group") for row in rows]
        X = points.collect(net, tokens, position)
        fits = splits * len(probes.PENALTIES) * (3 * len(X) + 2)
        with bar(fits, "fits") as progress:
            found = probes.probe(
                X, np.asarray([str(row["label"]) for row in rows]), splits=splits, seed=seed,
                groups=None if None in groups else np.asarray(groups),
                baselines=probes.text_baselines(tokens), on_done=progress.update,
            )  # fmt: skip
        draw = {"probe": lambda path: report.probe_curves(found, path, title=data.stem)}
        write_results(place, {"probe": found}, draw)
    mean = found.mean("split")
    for point in found.point.values:
        print(f"{point:>3}  {float(mean.accuracy.sel(point=point)):.3f}")
    print(f"majority {float(mean.majority):.3f}  " + "  ".join(
        f"{f} {float(mean.baseline.sel(feature=f)):.3f}" for f in mean.feature.values
    ))  # fmt: skip


def steer(
    pairs: Path,
    prompts: Path,
    answer: str,
    wrong: str,
    layers: tuple[int, ...] = (),
    coefficients: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0),
    placebos: int = 8,
    model: str = MODEL,
    out: Path = Path("runs/steer"),
    overwrite: bool = False,
) -> None:
    """Steer prompts along the mean difference of contrast pairs, with random placebos.

    Args:
        pairs: A .csv or .jsonl file with the fields positive and negative.
        prompts: A text file, one prompt per line.
        answer: A token that steering should raise, such as " good".
        wrong: A token that it should lower.
        layers: After which to add it; by default every fourth.
        coefficients: In units of the layer's mean norm.
        placebos: Random directions.
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import directions, metrics, points, report, steering

    rows = _rows(pairs, "positive", "negative")
    texts = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{prompts} has no prompts: one per line.")
    with output(out, "steer", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        has, lacks = (
            points.collect(net, tokenizer([row[side] for row in rows]), site="resid_post")
            for side in ("positive", "negative")
        )
        direction = directions.from_pairs(has, lacks)
        tokens, n = tokenizer(texts), len(texts)
        metric = metrics.logit_diff(
            [tokenizer.single_token(answer)] * n, [tokenizer.single_token(wrong)] * n
        )
        chosen = list(layers) or list(range(0, net.config.n_layers, 4))
        total = len(chosen) * len(coefficients) * (1 + placebos) * n
        with bar(total, "experiments") as progress:
            found = steering.steer(
                net, tokens, metric, {"pairs": direction}, coefficients=coefficients, layers=chosen,
                placebos=placebos, on_done=progress.update,
            )  # fmt: skip
        draw = {"steer": lambda path: report.steering_curves(found, path, title=pairs.stem)}
        write_results(place, {"steer": found}, draw)
    change = (found - found.clean).mean("prompt")
    for layer in chosen:
        for c in coefficients:
            cell = change.sel(layer=layer, coefficient=c)
            others = cell.sel(direction=[d for d in cell.direction.values if d != "pairs"]).values
            span = f"{others.min():+.2f} to {others.max():+.2f}" if others.size else "none"
            print(f"{layer:>3} {c:+.2f}  {float(cell.sel(direction='pairs')):+.3f}  random {span}")


def _rows(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The rows of a .csv or .jsonl file; each has the fields."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        raise ValueError(f"{path} must end in .csv or .jsonl.")
    if not rows:
        raise ValueError(f"{path} has no rows.")
    for number, row in enumerate(rows):
        if missing := [f for f in fields if f not in row]:
            raise ValueError(f"Row {number} of {path} lacks {missing[0]!r}: it has {list(row)}.")
    return rows
