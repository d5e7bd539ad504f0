"""Long runs: activation patching over a stream of prompts, into a store that grows.

A batch is finished when its values lie in the store and the manifest says so, in this order,
each by an atomic rename. A process killed at any moment therefore loses at most the batch it
was at, and the next one goes on there: its store ends up the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxinterp.cells import Cells, coordinates
from jaxinterp.checks import whole_number
from jaxinterp.files import locked, room
from jaxinterp.growing import GrowingStore
from jaxinterp.metrics import Metric, check_metric, logit_diff
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.patching import check_pair, patch
from jaxinterp.results import claim, fingerprint
from jaxinterp.tasks import Task
from jaxinterp.tokens import Tokenizer

if TYPE_CHECKING:
    import xarray as xr

WIDTH = 8  # prompts longer than the first batch's are padded to a multiple of this

# Options of `patch` that the stream gives, and those that leave the run what it is.
_OURS = ("model", "clean", "corrupted", "metric", "parts", "on_done")
_FREE = ("memory", "mesh", "ledger", "record", "tokenizer")


def patch_stream(
    model: Model,
    batches: Iterable[Task | Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    total: int | None = None,
    on_done: Callable[[int], None] | None = None,
    **options: Any,
) -> xr.DataArray:
    """`patch` over a stream of batches, kept batch by batch: a killed call resumes.

    batches: `Task`s, or mappings with ``clean``, ``corrupted`` and ``metric`` (and ``roles``),
    such as `batches_of` makes; read once, held one at a time. They share the grid; the last
    may hold fewer prompts than the first. out: the folder of a zarr store that plain
    ``xarray.open_zarr`` reads, while it grows too: it then shows the finished batches.
    options: as in `patch`; ``positions="roles"`` sweeps each batch's own roles, which also
    works for prompts of unequal length. ``record`` should say what the stream is.

    Call it again with the same arguments to resume: finished batches are compared with what
    the store holds and not run; what is damaged is made again. A longer stream goes on where the
    store ends. One process writes at a time. ``memory`` and ``mesh`` may change, at the price of
    rounding.

    total: the number of prompts, if known. on_done: called with experiments x prompts as each
    batch is kept (or found finished). Without it, and at a terminal, a bar shows the rate and,
    with ``total``, the time left. ``manifest.json`` in ``out`` holds the rate of every session.

    Returns `patch`'s array with dims (*over, "prompt"), read from the store when it is used;
    its values are in chunks of one batch.

    Raises ``ValueError`` for an empty stream, a batch that does not fit the grid (naming it),
    a folder that holds something else, and a store of another run or stream; ``OSError``
    for a folder that cannot be written to, that another run writes to (``BlockingIOError``), or
    without room (`jaxinterp.files.DiskFull`); ``TypeError`` for options that `patch` lacks.
    """
    import xarray as xr

    if isinstance(batches, (Task, Mapping)):
        raise ValueError(f"batches is one {type(batches).__name__}: put it in a list.")
    total, run = whole_number("total", total, 1, optional=True), _run(model, options)
    grid: _Grid | None = None
    with locked(out) as folder, _progress(total, on_done) as step:
        store = GrowingStore(folder, run)
        for number, given in enumerate(batches):
            with _naming(f"Batch {number}"):
                batch = _as_batch(model, given, options)
                grid = _Grid.of(batch, options) if grid is None else grid
                grid.enter(batch)
            key = fingerprint(tuple(batch), batch.metric.describe(), list(batch.roles))
            rows = slice(grid.n_prompts - len(batch.clean), grid.n_prompts)
            if not (done := store.finished(number, key, rows)):
                began = time.perf_counter()
                with _naming(f"Batch {number}"):
                    result = grid.run(model, batch)
                with room(folder):
                    store.put(number, key, rows, result, began)
            step(int(np.prod(store.arrays[store.name].shape[:-1])), len(batch.clean), done)
        if grid is None:
            raise ValueError("The stream is empty, expected at least one batch: is it used up?")
        store.finish(grid.n_prompts, grid.metric, grid.texts)
    return xr.open_zarr(store.path, chunks=None)[store.name]


def batches_of(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    size: int,
    *,
    clean: str = "clean", corrupted: str = "corrupted",
    answer: str = "answer", wrong: str = "wrong",
    roles: Mapping[str, str] | None = None,
    add_bos: bool | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Batches for `patch_stream` from rows of text: a `datasets` dataset, streamed or not.

    rows: mappings; the other names say in which fields things are. clean, corrupted: texts
    of the same number of tokens. answer, wrong: one token each, as text (" Mary"; a list is a
    set), for the metric `logit_diff`. roles: role name to a field that holds a token position
    or a part of the clean text (its last token counts); END is always there.
    add_bos: as in `Tokenizer.encode`.

    Raises ``ValueError`` naming the row for fields that are missing or not text, prompts that
    differ in length, and answers that are not one token.
    """
    whole_number("size", size, 1)
    fields, numbered = (clean, corrupted, answer, wrong), enumerate(rows)
    while held := list(itertools.islice(numbered, size)):
        read = []
        for number, row in held:
            with _naming(f"Row {number}"):
                read.append(_read_row(row, tokenizer, fields, roles or {}, add_bos))
        texts, others, answers, wrongs, at = zip(*read, strict=True)
        yield {
            "clean": tokenizer(texts, add_bos=add_bos),
            "corrupted": tokenizer(others, add_bos=add_bos),
            "metric": logit_diff(list(answers), list(wrongs)),
            "roles": {role: np.array([each[role] for each in at]) for role in at[0]},
        }


def _read_row(
    row: Any, tokenizer: Tokenizer, fields: tuple[str, ...], roles: Mapping[str, str],
    add_bos: bool | None,
) -> tuple[str, str, list[int], list[int], dict[str, int]]:  # fmt: skip
    """One row's two texts, the tokens of its two answers, and its roles' positions."""
    for field in (*fields, *roles.values()):
        if field not in row:
            raise ValueError(f"there is no field {field!r} among {', '.join(map(str, row))}.")
    words = [row[f] if isinstance(row[f], list) else [row[f]] for f in fields]
    for field, texts in zip(fields, words, strict=True):
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"{field!r} is {row[field]!r}, expected a text.")
    clean, corrupted = (row[field] for field in fields[:2])
    n, m = (len(tokenizer.encode(text, add_bos=add_bos)) for text in (clean, corrupted))
    if n != m:
        raise ValueError(
            f"{fields[0]!r} has {n} tokens and {fields[1]!r} {m}: patching needs twins of equal "
            "length; reword one, or leave the row out."
        )
    at = {"END": n - 1}
    for role, value in ((role, row[field]) for role, field in roles.items()):
        part = isinstance(value, str)
        at[role] = tokenizer.positions_of(clean, value, add_bos=add_bos)[1] if part else int(value)
    answers, wrong = ([tokenizer.single_token(text) for text in texts] for texts in words[2:])
    return clean, corrupted, answers, wrong, at


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Says which batch or row a ``ValueError`` is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


class _Batch(NamedTuple):
    clean: Tokens
    corrupted: Tokens
    metric: Metric
    roles: dict[str, np.ndarray]


def _kind(batch: _Batch) -> str:
    """What is alike in all batches of a store."""
    return f"roles {list(batch.roles)} and metric {jax.tree.structure(batch.metric)}"


def _run(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """What tells one run from another, by name. Refuses options that `patch` lacks."""
    known = {k: v.default for k, v in inspect.signature(patch).parameters.items()}
    for name in options:
        if name in _OURS or name not in known:
            why = "the stream sets it itself" if name in _OURS else "`patch` has no such option"
            raise TypeError(f"patch_stream got {name}={options[name]!r}: {why}; leave it out.")
    positions = options.get("positions")
    if isinstance(positions, (str, Mapping)) and positions != "roles":
        raise ValueError(
            f"positions={positions!r}, expected some positions, or 'roles': each batch has its "
            "own positions of roles, under 'roles'."
        )
    said = {k: v for k, v in {**known, **options}.items() if k not in (*_OURS, *_FREE)}
    tokenizer = options.get("tokenizer")
    said["tokenizer"] = repr(tokenizer) if isinstance(tokenizer, Tokenizer) else None
    return claim(model, **said, record=dict(options.get("record") or {}))


def _as_batch(model: Model, given: Any, options: dict[str, Any]) -> _Batch:
    """A batch, checked by itself."""
    if isinstance(given, Task):
        given = {k: getattr(given, k) for k in ("clean", "corrupted", "metric", "roles")}
    if not isinstance(given, Mapping) or not {"clean", "corrupted", "metric"} <= given.keys():
        found = list(given) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{found}, expected a Task or a mapping with clean, corrupted and metric.")
    sides = (as_tokens(given[side]) for side in ("clean", "corrupted"))
    clean, corrupted = (jax.tree.map(np.asarray, tokens) for tokens in sides)
    check_pair(model, clean, corrupted)
    check_metric(given["metric"], model, clean)
    roles: dict[str, np.ndarray] = {}
    if options.get("positions") == "roles":
        roles = {k: np.asarray(v) for k, v in (given.get("roles") or {}).items()}
        if not roles or any(at.shape != (len(clean),) for at in roles.values()):
            shapes = {name: list(at.shape) for name, at in roles.items()}
            raise ValueError(f"roles of shapes {shapes}, expected one position for each prompt.")
    return _Batch(clean, corrupted, given["metric"], roles)


@dataclasses.dataclass
class _Grid:
    """What all batches share, set by the first, and what is known of those seen so far."""

    options: dict[str, Any]
    first: _Batch
    size: int  # prompts of a full batch
    fixed: bool  # absolute positions: all prompts have the first one's length
    metric: dict[str, Any]  # what `patch` would say of the metric of all prompts
    other: np.ndarray  # [P]: the first clean prompt, with another's token where one differs
    n_prompts: int = 0

    @classmethod
    def of(cls, first: _Batch, options: dict[str, Any]) -> _Grid:
        given = options.get("over", inspect.signature(patch).parameters["over"].default)
        over = (given,) if isinstance(given, str) else tuple(given)
        fixed = "source" in over or ("position" in over and options.get("positions") != "roles")
        return cls(options, first, len(first.clean), fixed, {}, first.clean.ids[0])

    def enter(self, batch: _Batch) -> None:
        """Count a batch in. Refuses what does not fit the grid."""
        (n, width), first_width = batch.clean.shape, self.first.clean.shape[1]
        short = self.n_prompts % self.size  # the prompts of the one before, if it was not full
        if short or n > self.size:
            raise ValueError(
                f"batches of {self.size} prompts, then of {short or n}: all are as large as the "
                "first, but for the last of the stream, which may be smaller."
            )
        if self.fixed and width != first_width:
            raise ValueError(
                f"prompts of {width} tokens, the first has {first_width}: absolute positions need "
                "equal lengths. Group the prompts by length, or pass positions='roles'."
            )
        if (kind := _kind(batch)) != (expected := _kind(self.first)):
            raise ValueError(f"{kind}, expected the first batch's {expected}.")
        self._describe(batch.metric.describe(), n)
        if self.fixed:
            ids, first = batch.clean.ids, self.first.clean.ids[0]
            there = (ids != first).argmax(0)
            self.other = np.where(self.other == first, ids[there, np.arange(width)], self.other)
        self.n_prompts += n

    def _describe(self, said: dict[str, Any], n: int) -> None:
        """Lists of one entry per prompt grow; whatever else varies is hashed."""
        for name, value in said.items():
            before = self.metric.setdefault(name, [])
            per_prompt = isinstance(value, list) and len(value) == n
            if not self.n_prompts:
                self.metric[name] = list(value) if per_prompt else value
            elif per_prompt and isinstance(before, list) and len(before) == self.n_prompts:
                before.extend(value)
            elif before != value:
                self.metric[name] = fingerprint(before, value)

    def run(self, model: Model, batch: _Batch) -> xr.DataArray:
        """`patch` of one batch, in the shapes of the first one, so that programs are shared."""
        n = len(batch.clean)
        rows = np.arange(self.size).clip(max=n - 1)

        def fill(leaf: Any, first: Any) -> Any:
            shared = leaf.shape[0] == first.shape[0] == 1
            return leaf if shared else np.asarray(leaf)[rows.clip(max=leaf.shape[0] - 1)]

        at = {role: places[rows] for role, places in batch.roles.items()}
        options = {**self.options, **({"positions": at} if at else {})}
        result = patch(
            model, **options, metric=jax.tree.map(fill, batch.metric, self.first.metric),
            clean=self._widen(model, batch.clean[rows]),
            corrupted=self._widen(model, batch.corrupted[rows]),
        )  # fmt: skip
        return result.isel(prompt=slice(n))

    def _widen(self, model: Model, tokens: Tokens) -> Tokens:
        """Padded on the right to one of few widths."""
        width, expected = tokens.shape[1], self.first.clean.shape[1]
        wide = expected if width <= expected else -(-width // WIDTH) * WIDTH
        if model.config.positions == "learned":
            wide = max(width, min(wide, model.config.n_ctx))
        pad = ((0, 0), (0, wide - width))
        types = None if tokens.types is None else np.pad(tokens.types, pad)
        positions = np.pad(tokens.positions, pad, constant_values=-1)
        return Tokens(np.pad(tokens.ids, pad), positions, types)

    def texts(self, axis: str, places: list[int]) -> list[str]:
        """The tokens at some positions of all prompts, as `patch` shows them."""
        two = as_tokens(np.stack([self.first.clean.ids[0], self.other]))
        cells = Cells({axis: places}, {axis: np.array(places)})
        tokenizer, names = self.options["tokenizer"], self.options.get("names")
        return coordinates(cells, two, two, tokenizer, names)[f"{axis}_token"][1]


@contextlib.contextmanager
def _progress(
    total: int | None, on_done: Callable[[int], None] | None
) -> Iterator[Callable[[int, int, bool], None]]:
    """What takes (experiments per prompt, prompts, whether found finished) of each batch."""
    from tqdm import tqdm

    silent = on_done is not None or not sys.stderr.isatty()
    with tqdm(unit=" experiments", unit_scale=True, smoothing=0.3, disable=silent) as bar:

        def step(per_prompt: int, prompts: int, resumed: bool) -> None:
            if on_done is not None:
                on_done(per_prompt * prompts)
            if not silent:
                found = per_prompt * prompts * resumed  # it says nothing about the rate
                bar.total = None if total is None else total * per_prompt
                bar.initial, bar.n = bar.initial + found, bar.n + found
                bar.update(per_prompt * prompts - found)

        yield step
