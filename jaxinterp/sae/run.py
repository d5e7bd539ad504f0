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
from jaxinterp.files import append
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
from jaxinterp.training import Checkpoint, begin_log, digest

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
    something else in it; ``FileExistsError`` for a ``log`` that holds anything but a run's lines;
    ``BlockingIOError`` while another run holds the folder.
    """
    one_of("on_bad", on_bad, ON_BAD)
    whole_number("save_every", save_every, 1)
    whole_number("log_every", log_every, 1)
    members = members.spread()
    members.check(config)
    training = _with_slots(training, config, members, mesh)
    source = Given() if source is None else source
    stream = iter(batches)
    first = list(itertools.islice(stream, 1))
    stream = itertools.chain(first, stream)
    identity = {} if folder is None or not first else {"batch": digest(first)}
    run = _Run(config, training, members, source.about, folder, identity)
    with run.held():
        about = None if run.checkpoint is None else run.checkpoint.about()
        states, source, scaling, told = run.begin(about, source, scaling)
        told.to(log, on_step, stop=on_bad == "stop")
        done = 0 if about is None else about["step"]
        stream = itertools.islice(stream, max(0, done - 1), training.steps)
        if run.checkpoint is not None and about is not None and done:
            run.checkpoint.check_batch(about, next(stream, None))
        if mesh is not None:
            states = place_states(states, mesh, config.n_features)
            source, members = everywhere(source, mesh), everywhere(members, mesh)
        step = done - 1
        for step, given in enumerate(stream, done):
            batch = given if mesh is None else place_batch(given, mesh)
            scaling = _measured(config, source, batch) if scaling is None else scaling
            states, source, seen = advance(
                states, source, members, scaling, batch, training=training
            )
            told.waiting.append((step, seen))
            last = step + 1 == training.steps
            saving = run.checkpoint is not None and ((step + 1) % save_every == 0 or last)
            if saving or (step + 1) % log_every == 0 or last:
                told.tell()
            if saving:
                run.save(states, source, scaling, step + 1, told, given)
        told.tell()
        if step + 1 < training.steps:
            raise ValueError(
                f"The stream has {step + 1} batches, {training.steps} steps need as many."
            )
        assert scaling is not None
        return _trained(states, scaling, told, members)


def _with_slots(
    training: TrainingConfig, config: DictionaryConfig, members: Hyperparameters, mesh: Mesh | None
) -> TrainingConfig:
    """The same with a number of slots, where none was given."""
    if training.slots is not None:
        return training
    slots = 0 if mesh is not None else slots_for(config, float(np.max(members.k)))
    return dataclasses.replace(training, slots=slots)


def _measured(config: DictionaryConfig, source: Any, batch: Any) -> Scaling:
    """The scaling of the first batch, whose shapes are checked."""
    _, x, y = source.take(batch)
    _check(config, x, y)
    return measure(x, x if y is x else y)


def _trained(states: State, scaling: Scaling, told: _Told, members: Hyperparameters) -> Trained:
    each = (
        jax.tree.map(lambda leaf, i=i: leaf[i], states.dictionary) for i in range(len(members.seed))
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


class _Told:
    """Lines of what updates told, and the batches that were left out; plain numbers."""

    def __init__(
        self, lines: list[dict[str, Any]] | None = None, skipped: list[list[Any]] | None = None
    ):
        self.lines, self.skipped = lines or [], skipped or []
        self.waiting: list[tuple[int, Seen]] = []

    def to(
        self, log: str | os.PathLike[str] | None, on_step: Callable[[int, dict[str, Any]], None],
        *, stop: bool,
    ) -> None:  # fmt: skip
        """Whom to tell, and whether a batch that is not finite ends the run.

        Raises ``FileExistsError`` for a log that holds anything but a run's lines.
        """
        self.log, self.on_step, self.stop = log, on_step, stop
        if log is not None:
            begin_log(log, self.lines, "error")

    def tell(self) -> None:
        """Tell of the updates since the last time, of the last of them at length."""
        for at, seen in self.waiting:
            bad = np.flatnonzero(~np.asarray(seen.finite))
            if len(bad):
                self.skipped.append([at, bad.tolist()])
                if self.stop:
                    raise ValueError(_reason(at, seen, bad))
        if not self.waiting:
            return
        self.lines.append(line := _told(*self.waiting[-1]))
        self.waiting.clear()
        if self.log is not None:
            append(self.log, json.dumps(line) + "\n")
        self.on_step(int(line["step"]), line)


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
    folder: str | os.PathLike[str] | None
    identity: dict[str, str]  # what tells its batches from another run's

    def held(self) -> contextlib.AbstractContextManager[None]:
        """The checkpoints' folder for this run alone."""
        return contextlib.nullcontext() if self.checkpoint is None else self.checkpoint.held()

    @functools.cached_property
    def checkpoint(self) -> Checkpoint | None:
        members = {name: np.asarray(value).tolist() for name, value in vars(self.members).items()}
        config = dataclasses.asdict(self.config)
        del config["model"]  # a name decides no number
        run = {
            "config": config, "members": members, "source": self.source,
            "training": dataclasses.asdict(self.training), **self.identity,
        }  # fmt: skip
        return None if self.folder is None else Checkpoint(Path(self.folder).absolute(), run)

    def begin(
        self, about: dict[str, Any] | None, source: Any, scaling: Scaling | None
    ) -> tuple[State, Any, Scaling | None, _Told]:
        """States, source, scaling and what was told, of a checkpoint if there is one.

        about: of the checkpoint. Raises ``ValueError`` where it has another scaling.
        """
        states = jax.vmap(lambda m: start(self.config, self.training, m))(self.members)
        if self.checkpoint is None or about is None:
            return states, source, scaling, _Told()
        like = {name: jnp.zeros(shape) for name, shape in about["scaling"].items()}
        like = jax.tree.map(jnp.asarray, (states, source.kept, like))
        states, changed, numbers = self.checkpoint.arrays(like)
        kept = Scaling(**numbers)
        pairs = zip(jax.tree.leaves(scaling), jax.tree.leaves(kept), strict=False)
        if any(not np.array_equal(a, b) for a, b in pairs):
            raise ValueError(f"{self.folder} was begun with another scaling: give that, or none.")
        return states, source.replace(**changed), kept, _Told(**about["told"])

    def save(
        self, states: State, source: Any, scaling: Any, step: int, told: _Told, batch: Any
    ) -> None:
        assert self.checkpoint is not None
        about = {
            "step": step, "told": {"lines": told.lines, "skipped": told.skipped},
            "scaling": {name: np.shape(value) for name, value in vars(scaling).items()},
        }  # fmt: skip
        arrays = jax.tree.map(jnp.asarray, (states, source.kept, vars(scaling)))
        self.checkpoint.save(arrays, about, batch)
