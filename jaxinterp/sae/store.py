"""Activations on disk: harvested once, read many times, shuffled across documents.

A folder with a zarr array [examples, (layer,) width] of what is read, one of what is written where
that differs, and ``store.json``, which says how many batches are whole. A batch of tokens is one
chunk, compressed, with a checksum.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.files import whole, writable_folder
from jaxinterp.loading.reading import read_json
from jaxinterp.model import Model, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.reading import LoadError
from jaxinterp.results import weights_digest
from jaxinterp.sae.dictionary import DictionaryConfig
from jaxinterp.sae.harvest import values_at

MANIFEST = "store.json"
DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk. rows: of a chunk; chunks: whole ones; paired: inputs and targets."""

    path: Path
    rows: int
    chunks: int
    paired: bool
    about: dict[str, Any]

    def __len__(self) -> int:
        return self.rows * self.chunks

    def chunk(self, number: int) -> Any:
        """Examples [rows ...] in float32, or a pair of them and their targets.

        Raises `LoadError` where the chunk is damaged.
        """
        if not 0 <= number < self.chunks:
            raise IndexError(f"chunk {number} of {self.chunks}")
        part = slice(number * self.rows, (number + 1) * self.rows)
        names = ("inputs", "targets") if self.paired else ("inputs",)
        try:
            found = tuple(_array(self.path, name)[part].astype(np.float32) for name in names)
        except Exception as error:
            raise LoadError(
                f"Chunk {number} of {self.path} is damaged ({error}): harvest it again."
            ) from error
        return found if self.paired else found[0]

    def norm_limit(self, times: float) -> np.ndarray:
        """So many times the median norm of what is read, in the first chunk: [] or [L]."""
        return times * np.median(np.linalg.norm(_first(self.chunk(0)), axis=-1), axis=0)

    def batches(
        self, size: int, *, seed: int = 0, epochs: int | None = None, mix: int = 8,
        shard: tuple[int, int] = (0, 1), longest: float | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """Shuffled batches of ``size``, the same ones for a seed.

        Chunks come in random order; ``mix`` of them lie in a buffer of which each batch is drawn,
        refilled whenever half of it is used. epochs: None is for ever. shard: (i, n) reads every
        n-th chunk from the i-th on, for the i-th of n processes. longest: leaves out examples of
        more than so many times the median norm (`norm_limit`): a language model has a few tokens
        with norms a hundred times the others', and their squared error would be all that counts.
        What does not fill the last batch of an epoch is left out.

        Raises ``ValueError`` for sizes that a store cannot give.
        """
        mine = np.arange(self.chunks)[shard[0] :: shard[1]]
        if not 0 <= shard[0] < shard[1] or not len(mine):
            raise ValueError(f"shard={shard} has no chunk of {self.chunks}.")
        if not 1 <= size <= self.rows * len(mine):
            raise ValueError(f"size={size}, but there are {self.rows * len(mine)} examples.")
        rng, epoch = np.random.default_rng((seed, shard[0])), 0
        limit = None if longest is None else self.norm_limit(longest)
        while epochs is None or epoch < epochs:
            order, held = rng.permutation(mine).tolist(), None
            while order or (held is not None and len(_first(held)) >= size):
                if order and (held is None or len(_first(held)) < max(size, mix * self.rows // 2)):
                    room = mix * self.rows - (0 if held is None else len(_first(held)))
                    taken = [order.pop() for _ in range(min(len(order), max(1, room // self.rows)))]
                    new = [_within(self.chunk(n), limit) for n in taken]
                    held = _joined([*([held] if held is not None else []), *new])
                    held = _taken(held, rng.permutation(len(_first(held))))
                    continue
                yield _taken(held, slice(0, size))
                held = _taken(held, slice(size, None))
            epoch += 1


def _within(chunk: Any, limit: np.ndarray | None) -> Any:
    """Its examples of norms up to a limit, in every layer."""
    if limit is None:
        return chunk
    short = np.linalg.norm(_first(chunk), axis=-1) <= limit
    return _taken(chunk, short.reshape(len(short), -1).all(1))


def _first(held: Any) -> np.ndarray:
    return held[0] if isinstance(held, tuple) else held


def _taken(held: Any, rows: Any) -> Any:
    return jax.tree.map(lambda a: a[rows], held)


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def harvest_to(
    path: str | os.PathLike[str],
    model: Model,
    config: DictionaryConfig,
    batches: Iterable[Any],
    *,
    dtype: str = "float16",
    first: bool = False,
    on_done: Callable[[int], None] = lambda examples: None,
) -> Store:
    """Run the model over batches of tokens and keep what a dictionary reads and writes.

    batches: tokens [B P] without padding (`corpora.packed`), all of one shape. A killed run goes on
    after its last whole batch, given the same batches again. first: whether a block's first token
    counts. on_done: called with the number of examples after each batch.

    Raises ``ValueError`` for another dtype, a store of another harvest at ``path``, padded batches,
    and values that are not finite or too large for the dtype, naming the batch.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {', '.join(DTYPES)}.")
    folder = writable_folder(path)
    about = {
        "model": model.name, "weights": weights_digest(model), "site": config.site,
        "target": config.target, "layers": list(config.layers), "kind": config.kind,
        "dtype": dtype, "first": first,
    }  # fmt: skip
    done, rows = 0, 0
    if (folder / MANIFEST).is_file():
        kept = open_store(folder)
        if kept.about != about:
            changed = [n for n in about if kept.about.get(n) != about[n]]
            raise ValueError(f"{folder} is another harvest ({', '.join(changed)} differ).")
        done, rows = kept.chunks, kept.rows
    for number, given in enumerate(batches):
        if number < done:
            continue
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        if not np.asarray(tokens.mask).all():
            raise ValueError(f"Batch {number} is padded: pack texts into blocks (corpora.packed).")
        x, y = _values(model, tokens, config, first)
        values = {"inputs": np.asarray(x)} | ({} if y is x else {"targets": np.asarray(y)})
        rows = rows or len(x)
        if len(x) != rows:
            raise ValueError(f"Batch {number} has {len(x)} examples, the ones before {rows}.")
        for name, value in values.items():
            with np.errstate(over="ignore"):  # told below
                small = value.astype(dtype)
            if not np.isfinite(small).all():
                raise ValueError(
                    f"Batch {number} has {name} that are not finite in {dtype} (largest: "
                    f"{np.abs(value).max():.3g}): choose dtype='float32', or look at the model."
                )
            _append(folder, name, small, number)
        manifest = {"rows": rows, "chunks": number + 1, "paired": y is not x, "about": about}
        with whole(folder / MANIFEST) as file:
            file.write_text(json.dumps(manifest), encoding="utf-8")
        on_done((number + 1) * rows)
    return open_store(folder)


def open_store(path: str | os.PathLike[str]) -> Store:
    """A store that `harvest_to` wrote, also while it grows.

    Raises ``FileNotFoundError``, and `LoadError` where it is damaged.
    """
    path = Path(path).absolute()
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"There is no {MANIFEST} in {path}.")
    found = read_json(path / MANIFEST)
    try:
        return Store(
            path, int(found["rows"]), int(found["chunks"]), bool(found["paired"]), found["about"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path / MANIFEST} is damaged: {error!r}.") from error


def _values(model: Model, tokens: Any, config: DictionaryConfig, first: bool) -> tuple[Any, Any]:
    """`values_at`, compiled; y is x where one thing is read and written."""
    x, y = _compiled(model, tokens, config=config, first=first)
    return x, x if (config.target or config.site) == config.site else y


_compiled = jax.jit(values_at, static_argnames=("config", "first"))


def _append(folder: Path, name: str, values: np.ndarray, number: int) -> None:
    """Write a chunk; what a killed run left of it is overwritten."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    shape = ((number + 1) * len(values), *values.shape[1:])
    if (folder / name).is_dir():
        array = _array(folder, name, "r+")
        array.resize(shape)
    else:
        array = zarr.create_array(
            folder / name, shape=shape, chunks=values.shape, dtype=values.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )  # fmt: skip
    array[number * len(values) :] = values


def _array(folder: Path, name: str, mode: Any = "r") -> Any:
    import zarr

    return zarr.open_array(folder / name, mode=mode)
