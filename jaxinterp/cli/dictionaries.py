"""The commands about sparse dictionaries: each is thin over the library."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from jaxinterp.cli.job import MODEL, bar, load_model, say, write_results
from jaxinterp.cli.output import Output, output
from jaxinterp.files import whole

if TYPE_CHECKING:
    import jax

    from jaxinterp.model import Model
    from jaxinterp.sae import Dictionary, DictionaryConfig

Given = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Held:
    """A dictionary, and the model and the text that it is held against.

    Args:
        dictionary: Its folder, of any form that is known (or a layer_N.safetensors of a set).
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        corpus: A text file or a folder of them; by default WikiText-2's test part.
        site: Where it reads, if its files do not tell.
        layer: The layer it reads, if its files do not tell.
        blocks: Of text.
        length: Tokens per block; the first of each is left out.
        batch: Blocks per program call.
    """

    dictionary: Given
    model: str = MODEL
    corpus: Path | None = None
    site: str = ""
    layer: int = -1
    blocks: int = 128
    length: int = 128
    batch: int = 8

    @property
    def record(self) -> dict[str, Any]:
        """For a result's claim."""
        return {"corpus": named(self.corpus), "length": self.length}

    def load(self, target: str = "") -> Dictionary:
        """The dictionary; raises ``ValueError`` where neither files nor options say what it reads.

        target: what a transcoder writes, if its files do not tell.
        """
        from jaxinterp import sae

        given: dict[str, Any] = {
            "site": self.site,
            "layers": (self.layer,) if self.layer >= 0 else (),
            "target": target,
        }
        d = sae.load(self.dictionary, **{name: value for name, value in given.items() if value})
        if not d.config.site or not d.config.layers:
            raise ValueError(
                f"The files of {self.dictionary} do not tell where it reads: give --site and "
                "--layer."
            )
        return d

    def against(self, d: Dictionary, out: Output | None = None) -> tuple[Model, Any, list[Any]]:
        """A model that the dictionary fits, its tokenizer, and batches of text."""
        from jaxinterp import corpora

        positive(blocks=self.blocks, length=self.length - 1, batch=self.batch)
        rows = texts(self.corpus, "test")
        net, tokenizer = load_model(self.model, out)
        c = d.config
        for place, width in ((c.site, c.d_in), (c.target or c.site, c.d_out)):
            for layer in c.layers:
                if (there := width_at(net, place, layer)) != width:
                    raise ValueError(
                        f"The dictionary has width {width} at {place}, {net.name} has {there}: it "
                        "is another model's."
                    )
        if c.model not in ("", net.name):
            say(f"The dictionary is of {c.model}, measured here in {net.name}.")
        stream = corpora.packed(rows, tokenizer, self.length, self.batch)
        batches = list(itertools.islice(stream, -(-self.blocks // self.batch)))
        if not batches:
            raise ValueError(
                f"{named(self.corpus)} does not fill {self.batch} blocks of --length {self.length}."
            )
        return net, tokenizer, batches


OfHeld = Annotated[Held, tyro.conf.arg(name="")]


def evaluate(
    held: OfHeld, target: str = "", out: Path = Path("runs/sae-evaluate"), overwrite: bool = False
) -> None:
    """Measure a dictionary on held-out text: reconstruction, and the model's loss with it in place.

    Args:
        held: The dictionary, the model and the text.
        target: What a transcoder writes, if its files do not tell.
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import results, sae
    from jaxinterp.sae.dictionary import described

    d = held.load(target)
    if d.config.kind == "transcoder" and not d.config.target:
        raise ValueError(
            f"The files of {held.dictionary} do not tell what it writes: give --target."
        )
    with output(out, "sae evaluate", given, overwrite) as place:
        net, _, batches = held.against(d, place)
        total = np.zeros(d.config.d_in)
        with bar(len(batches) * held.batch * held.length, "tokens") as progress:

            def examples() -> Iterator[Any]:
                nonlocal total
                for each in _values(net, d.config, batches):
                    x = each[0] if isinstance(each, tuple) else each
                    total = total + np.asarray(x, np.float64).sum(0)
                    yield each
                    progress.update(held.batch * held.length)

            own = sae.reconstruction(d, examples())
        own = own.assign_attrs(
            results.claim(
                net, method="reconstruction", site=d.config.site, layers=list(d.config.layers),
                examples=own.attrs["examples"], dictionary=described(d), **held.record,
            )
        )  # fmt: skip
        found = {"reconstruction": own}
        if d.config.kind == "sae":
            loss = sae.loss_recovered(net, d, batches, total / own.attrs["examples"])
            found["loss"] = loss.assign_attrs(held.record)
        else:
            say(f"The loss with it in place is an SAE's; this is a {d.config.kind}.")
        table: dict[str, Any] = {"dictionary": str(held.dictionary), **held.record}
        for name, each in found.items():
            table[name] = {n: float(v) for n, v in each.data_vars.items() if not v.dims}
        write_results(place, found, {})
        with whole(place / "evaluation.json") as file:
            file.write_text(json.dumps(table, indent=2), encoding="utf-8")
    for name in found:
        print(f"{name}: " + "  ".join(f"{n} {v:.4g}" for n, v in table[name].items()))


def dashboard(
    held: OfHeld,
    features: tuple[int, ...] = (),
    show: int = 300,
    k: int = 10,
    effects: int = 4,
    out: Path = Path("runs/sae-dashboard.html"),
    overwrite: bool = False,
) -> None:
    """Describe features on one page: what activates them, what they write, what ablating does.

    Args:
        held: The dictionary, the model and the text.
        features: Their numbers; by default --show at random of those that are active.
        show: How many features, where --features does not say which.
        k: Examples of each, of the largest activations and of every part of their range.
        effects: Blocks in which each feature is ablated and doubled; 0 for none.
        out: The page.
        overwrite: Whether to replace a page that is there.
    """
    from jaxinterp import sae
    from jaxinterp.report.features import write_features
    from jaxinterp.sae.study import study_features

    check_page(out, overwrite)
    positive(show=show, k=k)
    if effects < 0 or effects == 1:
        raise ValueError(f"--effects {effects}: 0, or 2 blocks at least, which an interval needs.")
    d = held.load()
    net, tokenizer, batches = held.against(d)
    chosen = list(features)
    if not chosen:
        density = sae.reconstruction(d, _values(net, d.config, batches)).density.values
        alive = np.flatnonzero(density)
        if not len(alive):
            raise ValueError("No feature is active on this text: give more --blocks.")
        chosen = sorted(np.random.default_rng(0).permutation(alive)[:show].tolist())
        say(f"{len(alive)} of {len(density)} features are active, {len(chosen)} are shown")
    caused = None
    if effects and d.config.kind == "sae":
        some = np.concatenate([tokens.ids for tokens in batches])[:effects]
        with bar(2 * len(chosen) * len(some), "experiments") as progress:
            caused = sae.feature_effects(
                net, d, some, chosen, batch=held.batch, on_done=progress.update
            )
    with bar(len(batches) * held.batch * held.length, "tokens") as progress:
        study = study_features(
            net, d, batches, features=chosen, k=k, sample=max(100, 4 * k), effects=caused,
            written=8 if d.config.d_out == net.config.d_model else 0, tokenizer=tokenizer,
            on_done=progress.update, record=held.record,
        )  # fmt: skip
    title = f"Features at {d.config.site} {d.config.layers[0]} of {net.name}"
    say(f"Wrote {write_features(study, out, title=title)}")


def convert(
    dictionary: Given,
    out: Given,
    form: str = "saelens",
    read_as: str = "",
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Write a dictionary in another library's form, and check that its features are the same.

    Args:
        dictionary: Its folder, of any form that is known (or a layer_N.safetensors of a set).
        out: The folder to write.
        form: saelens, jaxinterp, gemma-scope, gemma-scope-2, dictionary-learning, sparsify,
            circuit-tracer.
        read_as: The form that is read; by default seen from the files.
        overwrite: Whether to replace what is at --out.
        seed: Of the random inputs of the check.
    """
    from jaxinterp import sae

    d = sae.load(dictionary, form=read_as or None)
    sae.save(out, d, form=form, overwrite=overwrite)
    x, before = _lively(d, seed)
    after = np.asarray(sae.load(out, form=form).encode(x))
    on, still = before != 0, after != 0
    apart = float(np.abs(np.where(on & still, before - after, 0)).max())
    print(
        f"On {len(x)} random inputs with {on.sum() / len(x):.1f} active features each: features "
        f"differ by at most {apart:.2g} (the largest is {before.max():.3g}); "
        f"{int((on != still).sum())} are active in one only."
    )
    say(f"Wrote {out}")


def _values(net: Model, config: DictionaryConfig, batches: Iterable[Any]) -> Iterator[Any]:
    """What a dictionary reads, and beside it what it writes where that differs."""
    import jax

    from jaxinterp import sae

    read = jax.jit(functools.partial(sae.values_at, config=config, first=False))
    for tokens in batches:
        x, y = read(net, tokens)
        yield (x, y) if config.target not in ("", config.site) else x


def _lively(d: Dictionary, seed: int) -> tuple[jax.Array, np.ndarray]:
    """Random inputs, of a scale at which features are active, and these features."""
    import jax.numpy as jnp

    c, n = d.config, 256
    shape = (n, c.n_layers, c.d_in) if c.layered else (n, c.d_in)
    noise = np.random.default_rng(seed).normal(size=shape)
    centre = np.asarray(d.params.b_dec) if c.kind == "sae" else 0
    for scale in 10.0 ** np.arange(7):
        x = jnp.asarray(centre + scale * noise, jnp.float32)
        features = np.asarray(d.encode(x))
        if (features != 0).sum() >= n:
            break
    return x, features


def width_at(net: Model, name: str, layer: int) -> int:
    """Of a site's vectors; raises ``ValueError`` for a site or layer that no dictionary reads."""
    from jaxinterp.model import sites

    site = sites.require(net.config, name)
    if not site.layered or site.axes not in (("position", "d_model"), ("position", "neuron")):
        raise ValueError(
            f"--site {name}: a dictionary reads a vector per token inside a layer, such as "
            "resid_post, mlp_out or mlp_post."
        )
    if not 0 <= layer < net.config.n_layers:
        raise ValueError(f"--layer {layer}: {net.name} has 0 to {net.config.n_layers - 1}.")
    width = sites.axis_size(net.config, site, site.axes[-1])
    assert width is not None
    return width


def texts(corpus: Path | None, part: str) -> Iterable[Any]:
    """A corpus's rows; by default those of a part of WikiText-2."""
    from jaxinterp import corpora, loading

    if corpus is None:
        return corpora.read_lines(loading.fetch("wikitext-2") / f"{part}.raw.gz")
    return corpora.open_texts(corpus)


def named(corpus: Path | None) -> str:
    """A corpus's name in records."""
    return "wikitext-2" if corpus is None else str(corpus)


def positive(**numbers: int) -> None:
    """Raises ``ValueError``, naming the option, for a number below 1 (length: less its first)."""
    for name, value in numbers.items():
        if value < 1:
            least = 2 if name == "length" else 1
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value + least - 1}: at least {least}.")


def check_page(path: Path, overwrite: bool) -> None:
    """Raises ``FileExistsError`` where a file is there that may not, or must not, be replaced."""
    from jaxinterp.report.html import is_ours

    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another --out, or --overwrite.")
    if path.exists() and not is_ours(path):
        raise FileExistsError(
            f"{path} is not a page that jaxinterp wrote: give another --out, or move it away."
        )
