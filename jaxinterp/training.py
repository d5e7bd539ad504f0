"""Training a model from its parameters on: one compiled step of Flax NNX and optax, run on and on.

A killed run loses what came after its last checkpoint, and ends as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxinterp.checks import LONG, whole_number
from jaxinterp.files import (
    LOCK,
    append,
    check_replaceable,
    checksums,
    content,
    locked,
    tidy,
    whole,
    whole_folder,
)
from jaxinterp.model import Model
from jaxinterp.nnx import Transformer
from jaxinterp.numerics import wide
from jaxinterp.reading import (
    OWN_JSON_BYTES,
    LoadError,
    parse_json,
    read_json_object,
    regular_file,
)

if TYPE_CHECKING:
    import optax
    import xarray as xr

__all__ = ["Loss", "Trained", "train"]

Loss = Callable[[Model, Any], tuple[jax.Array, dict[str, jax.Array]]]


class Trained(NamedTuple):
    """The model after the last update, how the loss went, and models of the way.

    history: dim (step): ``loss`` and what the loss tells beside it, on the batch of that step, of
    the model that ``step`` updates had made. kept: models by the number of their updates.
    """

    model: Model
    history: xr.Dataset
    kept: dict[int, Model]


def train(
    model: Model,
    batch: Callable[[int], Any],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    folder: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    keep: Iterable[int] = (),
    log: str | os.PathLike[str] | None = None,
    log_every: int = 100,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> Trained:
    """Train all parameters of a model, a batch and an update per step.

    batch: the batch of a step (0 to steps - 1), a pytree of arrays whose shapes are the same at
    every step; a function of the step alone, so that a run that resumes sees the same ones.
    loss: ``(model, batch)`` to a scalar and a dict of other scalars worth telling. optimizer: any
    of optax's, in a Flax NNX loop. folder: of checkpoints (written by orbax, whole or not at all)
    every ``save_every`` steps and at the end; a run that finds one goes on from it, to the same
    numbers bit for bit on one CPU. It compares what decides them: the weights, the first batch and
    the last one learned from, ``steps``, and the compiled step, which is the loss and the
    optimizer (as long as JAX and the platform are the same). keep: numbers of updates
    after which the model is kept too (0: the model given). log: a JSONL file, new or of an earlier
    run. It, the history and ``on_step(step, values)`` are told every ``log_every`` steps and of
    the last.

    The models have the given one's name and no revision; its arrays are left as they are. Those of
    a model in half precision, and the optimizer's, are kept in float32 while it trains, as small
    updates would be lost in rounding; the loss sees, and returned is, the model in its own dtypes.

    Raises ``ValueError`` for numbers out of range, batches of unequal shapes, a folder that holds
    anything but a checkpoint of this run or lacks a model to keep, and at the first loss or
    parameters that are not finite, of which nothing is saved; ``FileExistsError`` for a ``log``
    that holds anything but a run's lines; ``BlockingIOError`` while another run holds the folder.
    """
    keep = tuple(sorted({whole_number("keep", n, 0, LONG) for n in keep}))
    _check(steps, save_every, log_every, keep)
    first = batch(0)
    model = jax.tree.map(jnp.asarray, model.replace(revision=""))
    run = {
        "config": model.config.to_dict(), "weights": digest(model.params), "batch": digest(first),
        "steps": steps,
    }  # fmt: skip
    saved = None if folder is None else Checkpoint(Path(folder).absolute(), run)
    loop = Loop(model, optimizer)
    state, update = loop.begin(), loop.update(loss)
    if saved is not None:
        saved.run["program"] = _program(update, state, first)
    told = _Told(steps, log_every, log, on_step, saved)
    with contextlib.nullcontext() if saved is None else saved.held():
        done, kept = 0, {0: loop.model(state)} if 0 in keep else {}
        if saved is not None and (about := saved.about()) is not None:
            done, told.lines = about["step"], about["lines"]
            saved.check_batch(about, first if done == 1 else batch(done - 1))
            state, kept = _resumed(saved, about, state, model, keep)
        told.begin()
        for step in range(done, steps):
            given = first if step == 0 else batch(step)
            _check_shapes(step, given, first)
            state, values, finite = update(state, given)
            told.waiting.append((step, values, finite))
            if step + 1 in keep:
                kept[step + 1] = loop.model(state)
            saving = saved is not None and ((step + 1) % save_every == 0 or step + 1 == steps)
            if saving or step % log_every == 0 or step + 1 == steps:
                told.tell()
            if saved is not None and saving:
                about = {"step": step + 1, "lines": told.lines, "kept": sorted(kept)}
                saved.save((state, kept), about, given)
        return Trained(loop.model(state), _history(told.lines, model, steps), kept)


def _check(steps: int, save_every: int, log_every: int, keep: tuple[int, ...]) -> None:
    for name, value in (("steps", steps), ("save_every", save_every), ("log_every", log_every)):
        whole_number(name, value, 1, LONG)
    if keep and not 0 <= keep[0] <= keep[-1] <= steps:
        raise ValueError(
            f"keep={list(keep)}, expected numbers of updates from 0 to steps={steps}: leave out "
            "those beyond, or train for longer."
        )


def _check_shapes(step: int, batch: Any, first: Any) -> None:
    """Raise ``ValueError`` for arrays of other shapes: they would compile the step again."""
    shapes, expected = ([np.shape(x) for x in jax.tree.leaves(each)] for each in (batch, first))
    if shapes != expected:
        raise ValueError(
            f"Batch {step} has arrays of shapes {shapes}, batch 0 had {expected}: give all batches "
            "the same shapes (pad what is shorter)."
        )


def _resumed(
    saved: Checkpoint, about: dict[str, Any], state: list[jax.Array], model: Model,
    keep: tuple[int, ...],
) -> tuple[list[jax.Array], dict[int, Model]]:  # fmt: skip
    """A checkpoint's arrays, and those of its models that are to be kept.

    Raises ``ValueError`` where a model is to be kept that the run has passed and did not keep.
    """
    wanted = [n for n in keep if n <= about["step"]]
    if missing := sorted({*wanted} - {*about["kept"]}):
        raise ValueError(
            f"{saved.folder} holds a checkpoint of {about['step']} updates, which kept the models "
            f"of {about['kept']} and not of {missing}: leave these out of keep, or give another "
            "folder."
        )
    state, kept = saved.arrays((state, dict.fromkeys(about["kept"], model)))
    return state, {n: kept[n] for n in wanted}


@dataclasses.dataclass
class _Told:
    """What updates told: to the log, to ``on_step``, and as lines for the history."""

    steps: int
    log_every: int
    log: str | os.PathLike[str] | None
    on_step: Callable[[int, dict[str, float]], None]
    saved: Checkpoint | None
    lines: list[dict[str, float]] = dataclasses.field(default_factory=list)
    waiting: list[tuple[int, dict[str, jax.Array], jax.Array]] = dataclasses.field(
        default_factory=list
    )

    def begin(self) -> None:
        """The log holds the lines so far."""
        if self.log is not None:
            begin_log(self.log, self.lines, "loss")

    def tell(self) -> None:
        """Tell of the updates since the last time, where it is of a step to tell of.

        Raises ``ValueError`` for an update that was not finite.
        """
        fine = jax.device_get([finite for *_, finite in self.waiting])
        for (step, values, _), finite in zip(self.waiting, fine, strict=True):
            if not finite:
                raise ValueError(_reason(step, float(values["loss"]), self.saved))
            if step % self.log_every == 0 or step + 1 == self.steps:
                told = {name: float(value) for name, value in values.items()}
                self.lines.append({"step": step, **told})
                if self.log is not None:
                    append(self.log, _line(self.lines[-1]))
                self.on_step(step, told)
        self.waiting.clear()


def begin_log(log: str | os.PathLike[str], lines: list[dict[str, Any]], name: str) -> None:
    """A JSONL file with these lines, in place of an earlier run's.

    That one may have told of steps after its checkpoint. name: what each line tells beside its
    ``step``.

    Raises ``FileExistsError`` for a file that holds anything but such lines, and `LoadError` for
    what is no regular file.
    """
    if os.path.lexists(log):
        with open(regular_file(log), encoding="utf-8", errors="replace") as file:
            strange = next((n for n, line in enumerate(file, 1) if not _tells(line, name)), None)
        if strange is not None:
            raise FileExistsError(
                f"Line {strange} of {log} is not one that a run told of: the file is not replaced. "
                "Move it away, or give another log."
            )
    with whole(log) as temporary:
        temporary.write_text("".join(map(_line, lines)), encoding="utf-8")


def _tells(line: str, name: str) -> bool:
    """Whether a line of a log is a run's; of one cut short the beginning shows it."""
    if not line.endswith("\n"):
        return line.startswith('{"step": ') or '{"step": '.startswith(line)
    try:
        found = parse_json(line, "the log")
    except LoadError:
        return False
    return isinstance(found, dict) and {"step", name} <= found.keys()


class Loop:
    """A Flax NNX training loop of a model and its optimizer, as functions of their arrays.

    These are in float32 or wider; the model that they stand for has dtypes of its own.
    """

    def __init__(self, model: Model, optimizer: optax.GradientTransformation):
        self.dtypes = jax.tree.map(lambda leaf: leaf.dtype, model.params)
        module = Transformer(jax.tree.map(wide, model))
        self.graph, state = nnx.split((module, nnx.Optimizer(module, optimizer, wrt=nnx.Param)))
        self.leaves, self.structure = jax.tree.flatten(state)

    def begin(self) -> list[jax.Array]:
        """The arrays before the first update, none of them twice: `update` donates them."""
        return [jnp.array(leaf) for leaf in self.leaves]

    def pair(self, state: list[jax.Array]) -> tuple[Transformer, nnx.Optimizer]:
        """Module and optimizer that hold the arrays."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.structure, state))

    def model(self, state: list[jax.Array]) -> Model:
        """A copy of the model as it is: the next update overwrites its buffers."""
        return jax.tree.map(jnp.array, self.own(self.pair(state)[0]))

    def own(self, module: Transformer) -> Model:
        """A module's model in its own dtypes."""
        model = module.model()
        params = jax.tree.map(lambda p, dtype: p.astype(dtype), model.params, self.dtypes)
        return model.replace(params=params)

    def update(self, loss: Loss) -> Callable[..., tuple[list[Any], dict[str, Any], jax.Array]]:
        """The compiled step: (arrays, batch) to new ones, what the loss told, if all is finite."""

        def objective(module: Transformer, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            value, others = loss(self.own(module), batch)
            told = {"loss": value, **others}
            if clash := {"step", "loss"} & set(others):
                raise ValueError(f"The loss tells {min(clash)!r}, a name that is taken: rename it.")
            for name, each in told.items():
                if jnp.shape(each) != ():
                    raise ValueError(
                        f"The loss gives {name!r} of shape {list(jnp.shape(each))}, expected "
                        "scalars: take the mean."
                    )
            return value, told

        # Lists of arrays: JAX passes them on in C++, Flax's states in Python, at each call.
        @functools.partial(jax.jit, donate_argnums=0)
        def update(
            state: list[jax.Array], batch: Any
        ) -> tuple[list[jax.Array], dict[str, jax.Array], jax.Array]:
            module, optimizer = self.pair(state)
            (value, told), slopes = nnx.value_and_grad(objective, has_aux=True)(module, batch)
            optimizer.update(module, slopes)
            finite = [jnp.isfinite(p).all() for p in jax.tree.leaves(self.own(module).params)]
            new = jax.tree.leaves(nnx.state((module, optimizer)))
            return new, told, jnp.isfinite(value) & jnp.stack(finite).all()

        return update


def _reason(step: int, loss: float, saved: Checkpoint | None) -> str:
    """Why a run stopped at a step."""
    if np.isfinite(loss):
        what = f"The update of step {step} made parameters that are not finite (its loss: {loss:g})"
    else:
        what = f"The loss of step {step} is {loss}, on batch({step}) after {step} updates"
    about = None if saved is None else saved.about()
    kept = "nothing was saved" if about is None else f"the checkpoint is of {about['step']} updates"
    return (
        f"{what}; {kept}. Lower the learning rate, clip the gradients "
        "(optax.clip_by_global_norm), or look at that batch."
    )


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _history(lines: list[dict[str, float]], model: Model, steps: int) -> xr.Dataset:
    import xarray as xr

    names = [name for name in lines[0] if name != "step"]
    return xr.Dataset(
        {name: ("step", [line[name] for line in lines]) for name in names},
        {"step": [line["step"] for line in lines]},
        {"model": model.name, "config": json.dumps(model.config.to_dict()), "steps": steps},
    )


def _program(compiled: Any, *given: Any) -> dict[str, str]:
    """A hash of what a jitted function does with arguments, and what it is lowered by."""
    text = hashlib.sha256(compiled.lower(*given).as_text().encode()).hexdigest()
    return {"text": text, "jax": jax.__version__, "platform": jax.default_backend()}


def digest(tree: Any) -> str:
    """SHA-256 of a tree's arrays, their shapes and dtypes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a run saves its arrays, beside a description of the run that must be the same.

    run: plain values, for JSON; ``program`` (of `_program`) counts where JAX and the platform are
    the same. A folder is written whole or not at all, and read with the arrays' checksums.
    """

    folder: Path
    run: dict[str, Any]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this run alone. Raises ``BlockingIOError`` while another has it."""
        with locked(self.folder.parent, f".{self.folder.name}{LOCK}") as parent:
            tidy(parent)
            yield

    def about(self) -> dict[str, Any] | None:
        """What was saved beside the arrays, None where nothing was.

        Raises ``ValueError`` where the folder holds another run, ``FileExistsError`` or
        ``ValueError`` where it holds something else.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not content(self.folder)):
            return None
        if not (self.folder / "run.json").is_file():
            raise ValueError(
                f"{self.folder} is there already and holds no checkpoint: give a folder that the "
                "run may have for itself."
            )
        check_replaceable(self.folder)
        found = read_json_object(self.folder / "run.json", OWN_JSON_BYTES)
        theirs, ours = dict(found.get("run") or {}), json.loads(json.dumps(self.run))
        made = [dict(each.get("program") or {}) for each in (theirs, ours)]
        if all(made) and any(made[0].get(n) != made[1].get(n) for n in ("jax", "platform")):
            del theirs["program"], ours["program"]  # the same step has another text there
        theirs["format"], ours["format"] = found.get("format"), FORMAT
        differ = sorted(n for n in theirs | ours if theirs.get(n) != ours.get(n))
        if differ:
            raise ValueError(
                f"{self.folder} holds a checkpoint of another run, of other {', '.join(differ)}: "
                "give another folder, or take it away."
            )
        return found

    def check_batch(self, about: dict[str, Any], batch: Any) -> None:
        """Raise ``ValueError`` where the last batch that was learned from was another one."""
        if about["seen"] != digest(batch):
            raise ValueError(
                f"{self.folder} holds a checkpoint of another run: batch {about['step'] - 1} is "
                "not the one that it learned from. Give the same batches, or another folder."
            )

    def arrays(self, like: Any) -> Any:
        """The arrays saved, as the tree ``like`` has them; `LoadError` where they are damaged."""
        import orbax.checkpoint as ocp

        leaves, structure = jax.tree.flatten(like)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(self.folder / "arrays", _numbered(leaves))
        except Exception as error:  # orbax raises many kinds
            reason = str(error).split("\n")[0][:300]
            raise LoadError(
                f"The checkpoint {self.folder} cannot be read ({reason}): it is damaged, or of "
                "another optimizer; take it away to begin anew."
            ) from error
        held = [_free(found[str(i)]) for i in range(len(leaves))]
        about = read_json_object(self.folder / "run.json", OWN_JSON_BYTES)
        if about.get("sums") != checksums(map(_host, held)):
            raise LoadError(
                f"The checkpoint {self.folder} is damaged: its arrays have other checksums. Take "
                "it away to begin anew."
            )
        return jax.tree.unflatten(structure, held)

    def save(self, arrays: Any, about: dict[str, Any], batch: Any) -> None:
        """Put a checkpoint in place of the one before. batch: the last one learned from."""
        import orbax.checkpoint as ocp

        leaves = jax.tree.leaves(arrays)
        with whole_folder(self.folder, overwrite=True) as folder:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / "arrays", _numbered(leaves))
            said = {
                "format": FORMAT, "run": self.run, "seen": digest(batch),
                "sums": checksums(map(_host, leaves)), **about,
            }  # fmt: skip
            (folder / "run.json").write_text(json.dumps(said), encoding="utf-8")


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    return {str(i): leaf for i, leaf in enumerate(leaves)}


def _host(array: jax.Array) -> np.ndarray:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _free(array: jax.Array) -> jax.Array:
    """An array of one device as JAX makes it, not bound there as orbax does."""
    if len(array.devices()) > 1:
        return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):  # of optimizers that draw
        data = jnp.array(np.asarray(jax.random.key_data(array)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jnp.array(np.asarray(array))
