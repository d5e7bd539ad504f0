"""A training run: steps, what is told on the way, checkpoints, and the dictionaries at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxinterp.checks import one_of, whole_number
from jaxinterp.files import append, whole
from jaxinterp.sae.devices import everywhere, place_batch, place_states
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig
from jaxinterp.sae.scaling import Scaling, fold, measure
from jaxinterp.sae.sparse import slots_for
from jaxinterp.sae.training import (
    Given,
    Hyperparameters,
    Seen,
    State,
    TrainingConfig,
    advance,
    start,
)
from jaxinterp.training import Checkpoint, digest

if TYPE_CHECKING:
    import xarray as xr

ON_BAD = ("stop", "skip")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Dictionaries on raw activations, one per member, and how training went.

    history: dims (step, member): ``error``, ``explained`` (of the batch's variance), ``l0``,
    ``dead``, ``penalty``. skipped: batches that some members did
    not learn from, and the numbers of these members.
    """

    dictionaries: tuple[Dictionary, ...]
    history: xr.Dataset
    skipped: tuple[tuple[int, tuple[int, ...]], ...]


def train(
    config: DictionaryConfig,
    batches: Iterable[Any],
    training: TrainingConfig,
    members: Hyperparameters,
    *,
    source: Any = None,
    scaling: Scaling | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    log: str | os.PathLike[str] | None = None,
    log_every: int = 100,
    on_bad: str = "stop",
    mesh: Mesh | None = None,
    on_step: Callable[[int, dict[str, Any]], None] = lambda step, seen: None,
) -> Trained:
    """Train the members of a front on one stream of batches, as one program.

    batches: what ``source`` takes, one per step and all of one shape; by default activations
    [B D] ([B L D]), or pairs of them and targets. scaling: by default measured on the first batch
    (give one measured on more). folder: of checkpoints, every ``save_every`` steps; a run that
    finds one goes on from it, and ends as if it had never stopped, given the same batches again
    (the first and the last one learned from are compared).
    log: a JSONL file, a line every ``log_every`` steps. on_bad: what to do about a batch that is
    not finite: ``"stop"`` raises and names it, ``"skip"`` leaves it out; nothing is learned from it
    either way. mesh: devices, by the axes ``data`` (examples) and ``feature``.

    Raises ``ValueError`` for a stream that is too short, batches of another width, and what
    `Hyperparameters` and `TrainingConfig` refuse, and a ``folder`` of another run or with
    something else in it; ``BlockingIOError`` while another run holds that.
    """
    one_of("on_bad", on_bad, ON_BAD)
    whole_number("save_every", save_every, 1)
    whole_number("log_every", log_every, 1)
    members = members.spread()
    members.check(config)
    if training.slots is None:
        slots = 0 if mesh is not None else slots_for(config, float(np.max(members.k)))
        training = dataclasses.replace(training, slots=slots)
    source = Given() if source is None else source
    place = None if folder is None else Path(folder).absolute()
    stream = iter(batches)
    first = list(itertools.islice(stream, 1))
    stream = itertools.chain(first, stream)
    seen = {} if place is None or not first else {"batch": digest(first)}
    run = _Run(config, training, members, source.about, place, seen)
    with run.held():
        states, source, scaling, done, told = run.begin(source, scaling)
        if log is not None:
            told.write(log)  # an earlier run may have told of steps after its checkpoint
        stream = itertools.islice(stream, max(0, done - 1), training.steps)
        if done:
            run.check_batch(next(stream, None))
        if mesh is not None:
            states = place_states(states, mesh, config.n_features)
            source, members = everywhere(source, mesh), everywhere(members, mesh)
        waiting: list[tuple[int, Seen]] = []

        def tell() -> None:
            """What the updates since the last time told, the last of them at length."""
            for at, seen in waiting:
                bad = np.flatnonzero(~np.asarray(seen.finite))
                if len(bad):
                    told.skipped.append([at, bad.tolist()])
                    if on_bad == "stop":
                        raise ValueError(_reason(at, seen, bad))
            if not waiting:
                return
            told.lines.append(line := _told(*waiting[-1]))
            waiting.clear()
            if log is not None:
                append(log, json.dumps(line) + "\n")
            on_step(int(line["step"]), line)

        step = done - 1
        for step, given in enumerate(stream, done):
            batch = given if mesh is None else place_batch(given, mesh)
            if scaling is None:
                _, x, y = source.take(batch)
                _check(config, x, y)
                scaling = measure(x, x if y is x else y)
            states, source, seen = advance(
                states, source, members, scaling, batch, training=training
            )
            waiting.append((step, seen))
            saving = run.folder is not None and (step + 1) % save_every == 0
            if saving or (step + 1) % log_every == 0 or step + 1 == training.steps:
                tell()
            if saving or (run.folder is not None and step + 1 == training.steps):
                run.save(states, source, scaling, step + 1, told, given)
        tell()
        if step + 1 < training.steps:
            raise ValueError(
                f"The stream has {step + 1} batches, {training.steps} steps need as many."
            )
        assert scaling is not None
        each = (
            jax.tree.map(lambda leaf, i=i: leaf[i], states.dictionary)
            for i in range(len(members.seed))
        )
        dictionaries = tuple(fold(d, scaling) for d in each)
        skipped = tuple((batch, tuple(bad)) for batch, bad in told.skipped)
        return Trained(dictionaries, _history(told, members), skipped)


def _check(config: DictionaryConfig, x: Any, y: Any) -> None:
    layers = (config.n_layers,) if config.layered else ()
    for what, values, width in (("reads", x, config.d_in), ("writes", y, config.d_out)):
        if np.shape(values)[1:] != (*layers, width):
            raise ValueError(
                f"A batch has shape {list(np.shape(values))}, but the dictionary {what} "
                f"{['example', *layers, width]}."
            )


@dataclasses.dataclass
class _Told:
    """Lines of what updates told, and the batches that were left out; plain numbers."""

    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: list[list[Any]] = dataclasses.field(default_factory=list)

    def write(self, log: str | os.PathLike[str]) -> None:
        """The lines so far as a JSONL file, in place of one that may be there."""
        with whole(log) as temporary:
            lines = (json.dumps(line) + "\n" for line in self.lines)
            temporary.write_text("".join(lines), encoding="utf-8")


def _reason(batch: int, seen: Seen, bad: np.ndarray) -> str:
    """Why members could not learn from a batch: it is not finite, or they are not any more."""
    if not np.asarray(seen.given).all():
        what = f"Batch {batch} has values that are not finite"
    else:
        what = f"At batch {batch} the loss of members {bad.tolist()} is not finite: they diverged"
    return f"{what}; nothing was learned from it. on_bad='skip' goes on without."


def _told(step: int, seen: Seen) -> dict[str, Any]:
    p = jax.tree.map(np.asarray, seen.parts)
    values = {
        "error": p.error, "explained": 1 - p.error / np.maximum(p.variance, 1e-30),
        "l0": p.l0, "dead": np.asarray(seen.dead), "penalty": p.penalty,
    }  # fmt: skip
    return {"step": step, **{name: value.tolist() for name, value in values.items()}}


def _history(told: _Told, members: Hyperparameters) -> xr.Dataset:
    import xarray as xr

    names = [name for name in told.lines[0] if name != "step"]
    settings = {name: ("member", np.asarray(value)) for name, value in vars(members).items()}
    return xr.Dataset(
        {name: (("step", "member"), [line[name] for line in told.lines]) for name in names},
        {"step": [line["step"] for line in told.lines], **settings},
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """Where a run begins, and its checkpoints."""

    config: DictionaryConfig
    training: TrainingConfig
    members: Hyperparameters
    source: dict[str, Any]
    folder: Path | None
    seen: dict[str, str]

    def held(self) -> contextlib.AbstractContextManager[None]:
        """The checkpoints' folder for this run alone."""
        return contextlib.nullcontext() if self.checkpoint is None else self.checkpoint.held()

    def check_batch(self, batch: Any) -> None:
        """Raise ``ValueError`` where the checkpoint was not made with this one as its last."""
        assert self.checkpoint is not None
        about = self.checkpoint.about()
        assert about is not None
        self.checkpoint.check_batch(about, batch)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint | None:
        members = {name: np.asarray(value).tolist() for name, value in vars(self.members).items()}
        run = {
            "config": dataclasses.asdict(self.config), "members": members, "source": self.source,
            "training": dataclasses.asdict(self.training), **self.seen,
        }  # fmt: skip
        return None if self.folder is None else Checkpoint(self.folder, run)

    def begin(self, source: Any, scaling: Scaling | None) -> Any:
        """States, source, scaling, steps done and what was told, of a checkpoint if there is one.

        Raises ``ValueError`` where the checkpoint is of another run.
        """
        states = jax.vmap(lambda m: start(self.config, self.training, m))(self.members)
        about = None if self.checkpoint is None else self.checkpoint.about()
        if self.checkpoint is None or about is None:
            return states, source, scaling, 0, _Told()
        like = {name: jnp.zeros(shape) for name, shape in about["scaling"].items()}
        like = jax.tree.map(jnp.asarray, (states, source.kept, like))
        states, changed, numbers = self.checkpoint.arrays(like)
        kept = Scaling(**numbers)
        pairs = zip(jax.tree.leaves(scaling), jax.tree.leaves(kept), strict=False)
        if any(not np.array_equal(a, b) for a, b in pairs):
            raise ValueError(f"{self.folder} was begun with another scaling: give that, or none.")
        return states, source.replace(**changed), kept, about["step"], _Told(**about["told"])

    def save(
        self, states: State, source: Any, scaling: Any, step: int, told: _Told, batch: Any
    ) -> None:
        assert self.checkpoint is not None
        about = {
            "step": step, "told": dataclasses.asdict(told),
            "scaling": {name: np.shape(value) for name, value in vars(scaling).items()},
        }  # fmt: skip
        arrays = jax.tree.map(jnp.asarray, (states, source.kept, vars(scaling)))
        self.checkpoint.save(arrays, about, batch)
