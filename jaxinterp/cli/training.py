"""`jaxinterp sae train`: a front of dictionaries, harvested for and trained in one folder."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxinterp.cli.dictionaries import named, positive, texts, width_at
from jaxinterp.cli.job import MODEL, bar, load_model, say, write_results
from jaxinterp.cli.output import Output, output

if TYPE_CHECKING:
    import xarray as xr

    from jaxinterp.model import Model
    from jaxinterp.sae import (
        DictionaryConfig,
        Hyperparameters,
        Scaling,
        Store,
        Trained,
        TrainingConfig,
    )

BLOCKS = 16  # of a harvest's program call
LONGEST = 10.0  # times the median norm: what is longer is not learned from


def train(
    layer: int,
    model: str = MODEL,
    corpus: Path | None = None,
    site: str = "resid_post",
    kind: Literal["sae", "transcoder"] = "sae",
    target: str = "",
    skip: bool = False,
    activation: Literal["relu", "gated", "topk", "batch_topk", "jumprelu"] = "batch_topk",
    width: int = 0,
    prefixes: tuple[int, ...] = (),
    k: tuple[float, ...] = (),
    sparsity: tuple[float, ...] = (),
    target_l0: tuple[float, ...] = (),
    seeds: int = 1,
    learning_rate: float = 4e-4,
    tokens: int = 1_000_000,
    epochs: int = 2,
    batch: int = 2048,
    length: int = 128,
    dead_after: int = 200_000,
    save_every: int = 500,
    tensorboard: Path | None = None,
    form: str = "saelens",
    out: Path = Path("runs/sae"),
    overwrite: bool = False,
) -> None:
    """Train a front of sparse dictionaries on a model's activations, as one program.

    A member for every k, sparsity and target of L0 given, times seeds. Harvested activations and
    checkpoints lie in --out: when interrupted, the same command goes on.

    Args:
        layer: The layer that is read.
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        corpus: A text file or a folder of them; by default WikiText-2's training part.
        site: The site that is read.
        kind: An SAE writes what it reads; a transcoder writes --target.
        target: The site that a transcoder writes, such as mlp_out for --site mlp_in.
        skip: A transcoder's linear connection beside its features.
        activation: What makes features sparse.
        width: Features; by default 8 times the width that is read.
        prefixes: Lengths of a Matryoshka's nested codes; the last is --width.
        k: Of topk and batch_topk: features active per example; by default 32.
        sparsity: Of the others: the penalty's coefficients.
        target_l0: Of jumprelu: the L0 that its penalty holds.
        seeds: Members of each setting, which differ in where they begin.
        learning_rate: Of all members.
        tokens: To harvest.
        epochs: Passes over them.
        batch: Examples per update.
        length: Tokens per block; the first of each is left out.
        dead_after: Examples without firing after which a feature counts as dead.
        save_every: Updates between checkpoints.
        tensorboard: A folder for TensorBoard's logs; by default none.
        form: The files' form: saelens, jaxinterp, gemma-scope, dictionary-learning, ...
        out: Output folder, for one run's results.
        overwrite: Whether to delete those of other settings.
    """
    given = locals()
    from jaxinterp import sae
    from jaxinterp.sae.tensorboard import tensorboard as scalars_in

    positive(
        seeds=seeds, tokens=tokens, epochs=epochs, batch=batch, length=length - 1,
        save_every=save_every,
    )  # fmt: skip
    if (kind == "transcoder") != bool(target):
        raise ValueError(f"--kind {kind} --target {target!r}: a transcoder has one, an SAE none.")
    rows = texts(corpus, "train")
    k = k or ((32.0,) if activation in ("topk", "batch_topk") else ())
    names, members = _members(k, sparsity, target_l0, seeds, learning_rate)
    scalars = None if tensorboard is None else scalars_in(tensorboard, names)
    front = _Front(names, members, scalars)
    about = {"corpus": named(corpus), "tokens": tokens, "length": length}
    with output(out, "sae train", given, overwrite) as place:
        net, tokenizer = load_model(model, place)
        d_in = width_at(net, site, layer)
        config = sae.DictionaryConfig(
            d_in, width or 8 * d_in, kind, activation, d_out=width_at(net, target or site, layer),
            prefixes=prefixes, skip=skip, model=net.name, site=site, target=target, layers=(layer,),
        )  # fmt: skip
        members.spread().check(config)
        _check_form(form, config, members)
        store = _harvested(place, about, net, tokenizer, config, rows)
        if batch > len(store):
            raise ValueError(f"--batch {batch}: there are {len(store)} examples only.")
        training = sae.TrainingConfig(epochs * len(store) // batch, dead_after=dead_after)
        found = front.train(place, store, config, training, batch, save_every)
        about |= {"steps": training.steps, "epochs": epochs, "batch": batch}
        history = front.write(place, found, net, config, form, about)
    front.show(history)


@dataclasses.dataclass(frozen=True)
class _Front:
    """The members of a run, and what becomes of them."""

    names: list[str]
    members: Hyperparameters
    scalars: Any  # of TensorBoard, if they are wanted

    def train(
        self, place: Output, store: Store, config: DictionaryConfig, training: TrainingConfig,
        batch: int, save_every: int,
    ) -> Trained:  # fmt: skip
        """The dictionaries, and how training went."""
        from jaxinterp import sae

        say(f"Training {len(self.names)} dictionaries of {config.n_features} features")
        with bar(training.steps, "steps") as progress:

            def tell(step: int, seen: dict[str, Any]) -> None:
                progress.update(step + 1 - progress.n)
                progress.set_postfix({n: f"{np.mean(seen[n]):.3g}" for n in ("l0", "explained")})
                if self.scalars:
                    self.scalars(step, seen)

            found = sae.train(
                config, store.batches(batch, longest=LONGEST), training, self.members,
                scaling=_scaling(store), folder=place.inner("checkpoint"), save_every=save_every,
                log=place / "log.jsonl", log_every=min(20, save_every), on_step=tell,
            )  # fmt: skip
        if self.scalars:
            self.scalars.close()
        return found

    def write(
        self, place: Output, found: Trained, net: Model, config: DictionaryConfig, form: str,
        about: dict[str, Any],
    ) -> xr.Dataset:  # fmt: skip
        """Each dictionary in a folder, the history, and a picture of the front."""
        from jaxinterp import results, sae
        from jaxinterp.report.fronts import front_curves

        for name, d in zip(self.names, found.dictionaries, strict=True):
            sae.save(place.inner("dictionaries") / name, d, form=form, overwrite=True)
        said = dataclasses.asdict(config)
        claim = results.claim(net, method="dictionaries trained", dictionary=said, **about)
        history = found.history.assign_coords(member=self.names).assign_attrs(claim)
        say(f"Saved each in {place.inner('dictionaries')}")
        where = f"{config.site} {config.layers[0]} of {net.name}"
        title = f"{config.activation} at {where}, {config.n_features} features"
        write_results(
            place,
            {"history": history},
            {"front": lambda to: front_curves(history, to, title=title)},
        )
        return history

    def show(self, history: xr.Dataset) -> None:
        """Print how each member ended."""
        last, room = history.isel(step=-1), max(map(len, self.names))
        print(f"{'':{room}}       L0  explained    dead")
        for name in self.names:
            l0, explained, dead = (
                float(last[n].sel(member=name)) for n in ("l0", "explained", "dead")
            )
            print(f"{name:{room}}  {l0:7.2f}  {explained:9.4f}  {dead:6.1%}")


def _members(
    k: tuple[float, ...], sparsity: tuple[float, ...], target_l0: tuple[float, ...], seeds: int,
    learning_rate: float,
) -> tuple[list[str], Hyperparameters]:  # fmt: skip
    """Names and settings of every member: each value given with each other, times seeds."""
    from jaxinterp import sae

    knobs = {"k": k, "sparsity": sparsity, "target_l0": target_l0}
    rows = list(itertools.product(*(given or (0.0,) for given in knobs.values()), range(seeds)))
    shown = [name for name, given in knobs.items() if given]
    names = []
    for row in rows:
        values = dict(zip(knobs, row[:-1], strict=True))
        knobs_of = [f"{name}{values[name]:g}" for name in shown]
        names.append("-".join([*knobs_of, f"seed{row[-1]}"]).replace("target_l0", "l0_"))
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)}: members are there twice; give each value once.")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    fields: dict[str, Any] = dict(zip((*knobs, "seed"), columns, strict=True))
    return names, sae.Hyperparameters(learning_rate=learning_rate, **fields)


def _check_form(form: str, config: DictionaryConfig, members: Hyperparameters) -> None:
    """Raise now what saving in a form would raise when all is trained."""
    from jaxinterp import sae

    small = dataclasses.replace(
        config, d_in=1, d_out=1 + (config.d_out != config.d_in), n_features=1, prefixes=()
    )
    arrays = {name: np.zeros(shape, np.float32) for name, shape in small.shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        for k in set(np.ravel(members.k).tolist()):
            one = sae.Dictionary(sae.Parameters(**arrays), small, k)
            sae.save(Path(folder) / "one", one, form=form, overwrite=True)


def _harvested(
    out: Output, about: dict[str, Any], net: Model, tokenizer: Any, config: DictionaryConfig,
    rows: Iterable[Any],
) -> Store:  # fmt: skip
    """The store in a run's folder, filled; raises ``ValueError`` for another text's."""
    from jaxinterp import corpora, sae

    length = about["length"]
    size = BLOCKS * (length - 1)
    count = -(-about["tokens"] // size)
    blocks = corpora.packed(rows, tokenizer, length, BLOCKS)
    first = list(itertools.islice(blocks, 1))
    if not first:
        raise ValueError(f"{about['corpus']} does not fill {BLOCKS} blocks of --length {length}.")
    with bar(count * size, "tokens") as progress:
        store = sae.harvest_to(
            out.inner("activations"), net, config,
            itertools.islice(itertools.chain(first, blocks), count),
            on_done=lambda n: progress.update(n - progress.n),
        )  # fmt: skip
    if store.chunks < count:
        say(f"{about['corpus']} has {len(store)} tokens of the {about['tokens']} asked for.")
    return store


def _scaling(store: Store) -> Scaling:
    """Measured on the store's first chunks."""
    from jaxinterp import sae

    chunks = [store.chunk(i) for i in range(min(8, store.chunks))]
    pairs = chunks if store.paired else [(chunk, chunk) for chunk in chunks]
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    usual = np.linalg.norm(x, axis=-1) <= store.norm_limit(LONGEST)
    x, y = x[usual], y[usual]
    return sae.measure_scaling(x, y if store.paired else x)
