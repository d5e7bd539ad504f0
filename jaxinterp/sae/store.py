"""Activations on disk: harvested once, read many times, shuffled across documents.

A folder with a zarr array [examples, (layer,) width] of what is read, one of what is written where
that differs, ``store.json``, which says what they are, and ``chunks.jsonl`` with a line for each
chunk that is whole: the hash of the tokens that it was made from, and a checksum of its values. A
batch of tokens is one chunk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.checks import one_of, random_seed, real_number, whole_number
from jaxinterp.files import append, checksums, content, locked, mark, marked, room, tidy, whole
from jaxinterp.model import Model, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.reading import (
    UNPACKED,
    UNPACKED_LEAST,
    LoadError,
    parse_json,
    read_json_object,
    regular_file,
)
from jaxinterp.results import fingerprint, weights_digest
from jaxinterp.sae.dictionary import DictionaryConfig
from jaxinterp.sae.harvest import values_at

MANIFEST, CHUNKS = "store.json", "chunks.jsonl"
FORMAT = 2
ARRAYS = ("inputs", "targets")
OURS = [MANIFEST, CHUNKS, *(f"{name}/zarr.json" for name in ARRAYS)]
OUR_CHUNKS = [f"{name}/c/[0-9]*" for name in ARRAYS]
DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk.

    rows: of a chunk; paired: inputs and targets; lines: what is known of each whole chunk.
    """

    path: Path
    rows: int
    paired: bool
    about: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    @property
    def chunks(self) -> int:
        return len(self.lines)

    def __len__(self) -> int:
        return self.rows * self.chunks

    def chunk(self, number: int) -> Any:
        """Examples [rows ...] in float32, or a pair of them and their targets.

        Raises `LoadError` where the chunk is missing or damaged, ``ValueError`` beyond the last.
        """
        number = whole_number("number", number, 0, self.chunks - 1)
        part = slice(number * self.rows, (number + 1) * self.rows)
        names = ARRAYS if self.paired else ARRAYS[:1]
        try:
            found = tuple(self._read(name, number, part) for name in names)
            wrong = (
                "" if checksums(found) == self.lines[number]["sums"] else "its checksum is another"
            )
        except Exception as error:
            raise LoadError(_damaged(self.path, number, error)) from error
        if wrong:
            raise LoadError(_damaged(self.path, number, wrong))
        wide = tuple(values.astype(np.float32) for values in found)
        return wide if self.paired else wide[0]

    def _read(self, name: str, number: int, part: slice) -> np.ndarray:
        """One chunk of an array; what it claims to hold is compared with its files before."""
        files = [*(self.path / name / "c" / str(number)).rglob("*"), self.path / name / "zarr.json"]
        there = sum(regular_file(file).stat().st_size for file in files if not file.is_dir())
        array = _array(self.path, name)
        claimed = math.prod(array.chunks) * array.dtype.itemsize
        if array.chunks[0] != self.rows or claimed > max(UNPACKED * there, UNPACKED_LEAST):
            raise ValueError(f"it claims {claimed} bytes, its files have {there}")
        return np.asarray(array[part])

    def norm_limit(self, times: float) -> np.ndarray:
        """So many times the median norm of what is read, in the first chunk: [] or [L]."""
        times = real_number("times", times, above=0)
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
        shard = tuple(whole_number("shard", each) for each in shard)
        mine = np.arange(self.chunks)[shard[0] :: shard[1]]
        if not 0 <= shard[0] < shard[1] or not len(mine):
            raise ValueError(f"shard={shard} has no chunk of {self.chunks}.")
        size = whole_number("size", size, 1, self.rows * len(mine))
        epochs = whole_number("epochs", epochs, 1, optional=True)
        mix, seed = whole_number("mix", mix, 1), random_seed(seed)
        rng, epoch = np.random.default_rng((seed, shard[0])), 0
        real_number("longest", longest, above=0, optional=True)
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
    after its last whole batch, given the same batches again: those that the store holds are
    compared with it, and chunks that are missing or damaged are made again. first: whether a
    block's first token counts. on_done: called with the number of examples after each batch.

    Raises ``ValueError`` for another dtype, a store of another harvest or of other batches at
    ``path``, a folder that holds something else, padded batches, and values that are not finite or
    too large for the dtype, naming the batch; ``BlockingIOError`` while another run writes there.
    """
    one_of("dtype", dtype, DTYPES)
    about = {
        "model": model.name, "weights": weights_digest(model), "site": config.site,
        "target": config.target, "layers": list(config.layers), "kind": config.kind,
        "dtype": dtype, "first": first,
    }  # fmt: skip
    with locked(path) as folder:
        kept = _begun(folder, about)
        for number, given in enumerate(batches):
            tokens = as_tokens(given)
            check_tokens(model.config, tokens)
            if not np.asarray(tokens.mask).all():
                raise ValueError(
                    f"Batch {number} is padded: pack texts into blocks (corpora.packed)."
                )
            seen = fingerprint(*(np.asarray(leaf) for leaf in jax.tree.leaves(tokens)))
            if kept is None or not _whole(kept, number, seen):
                values = _harvest(model, tokens, config, first, dtype, number)
                kept = _keep(folder, kept, about, number, seen, values)
            on_done((number + 1) * kept.rows)
    return open_store(folder)


def _begun(folder: Path, about: dict[str, Any]) -> Store | None:
    """What an earlier run has left in a folder, None where it is empty."""
    tidy(folder)
    if (folder / MANIFEST).is_file():
        if marked(folder) is None:
            raise ValueError(
                f"{folder} holds {MANIFEST!r}, and nothing shows that jaxinterp wrote it: choose "
                "the store of an earlier run, or an empty folder."
            )
        kept = open_store(folder)
        if kept.about != about:
            changed = [n for n in about if kept.about.get(n) != about[n]]
            raise ValueError(f"{folder} is another harvest ({', '.join(changed)} differ).")
        with whole(folder / CHUNKS) as file:  # without half a line that may be at its end
            file.write_text("".join(map(_line, kept.lines)), encoding="utf-8")
        return kept
    if strange := content(folder):
        raise ValueError(
            f"{folder} holds {strange[0]!r} and no {MANIFEST}: choose the store of an earlier run, "
            "or an empty folder."
        )
    mark(folder, OURS, OUR_CHUNKS)
    return None


def _whole(kept: Store, number: int, seen: str) -> bool:
    """Whether a store holds a batch. Raises ``ValueError`` where it holds another one."""
    if number >= kept.chunks:
        return False
    if kept.lines[number]["tokens"] != seen:
        raise ValueError(
            f"Batch {number} is not the one that {kept.path} was harvested from: give the same "
            "text, or another folder."
        )
    try:
        kept.chunk(number)
    except LoadError:
        return False
    return True


def _harvest(
    model: Model, tokens: Any, config: DictionaryConfig, first: bool, dtype: str, number: int
) -> dict[str, np.ndarray]:
    """What a chunk holds, by name. Raises ``ValueError`` for values beyond the dtype."""
    x, y = _values(model, tokens, config, first)
    values = {"inputs": np.asarray(x)} | ({} if y is x else {"targets": np.asarray(y)})
    for name, value in values.items():
        with np.errstate(over="ignore"):  # told below
            values[name] = value.astype(dtype)
        if not np.isfinite(values[name]).all():
            raise ValueError(
                f"Batch {number} has {name} that are not finite in {dtype} (largest: "
                f"{np.abs(value).max():.3g}): choose dtype='float32', or look at the model."
            )
    return values


def _keep(
    folder: Path, kept: Store | None, about: dict[str, Any], number: int, seen: str,
    values: dict[str, np.ndarray],
) -> Store:  # fmt: skip
    """Write a chunk, and then say that it is whole."""
    rows = len(values["inputs"])
    if kept is None:
        kept = Store(folder, rows, "targets" in values, about, ())
        said = {"format": FORMAT, "rows": rows, "paired": kept.paired, "about": about}
        with whole(folder / MANIFEST) as file:
            file.write_text(json.dumps(said), encoding="utf-8")
    if rows != kept.rows:
        raise ValueError(f"Batch {number} has {rows} examples, the ones before {kept.rows}.")
    for name, value in values.items():
        with room(folder / name):
            _put(folder, name, value, number, max(number + 1, kept.chunks))
    line = {"chunk": number, "tokens": seen, "sums": checksums(values.values())}
    append(folder / CHUNKS, _line(line))
    lines = (*kept.lines[:number], line, *kept.lines[number + 1 :])
    return dataclasses.replace(kept, lines=lines)


def open_store(path: str | os.PathLike[str]) -> Store:
    """A store that `harvest_to` wrote, also while it grows.

    Raises ``FileNotFoundError``, and `LoadError` where it is damaged.
    """
    path = Path(path).absolute()
    if not (path / MANIFEST).exists():
        raise FileNotFoundError(f"There is no {MANIFEST} in {path}.")
    found = read_json_object(path / MANIFEST)
    try:
        rows, paired, about = int(found["rows"]), bool(found["paired"]), dict(found["about"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path / MANIFEST} is damaged: {error!r}.") from error
    if found.get("format") != FORMAT:
        raise LoadError(f"{path} is a store of another version: harvest it again, elsewhere.")
    return Store(path, rows, paired, about, tuple(_lines(path / CHUNKS)))


def _line(said: dict[str, Any]) -> str:
    return json.dumps(said) + "\n"


def _lines(file: Path) -> list[dict[str, Any]]:
    """What is known of each whole chunk; of one that was made again, the last line counts."""
    found: dict[int, dict[str, Any]] = {}
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    for row in text.split("\n")[:-1]:  # a killed run may have left half a line at the end
        try:
            line = parse_json(row, file)
            found[int(line["chunk"])] = {name: line[name] for name in ("chunk", "tokens", "sums")}
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"{file} is damaged: {error!r}. Harvest it again.") from error
    if sorted(found) != list(range(len(found))):
        raise LoadError(f"{file} is damaged: it lacks a chunk. Harvest it again.")
    return [found[number] for number in range(len(found))]


def _damaged(path: Path, number: int, reason: Any) -> str:
    return f"Chunk {number} of {path} is damaged ({reason}): harvest it again."


def _values(model: Model, tokens: Any, config: DictionaryConfig, first: bool) -> tuple[Any, Any]:
    """`values_at`, compiled; y is x where one thing is read and written."""
    x, y = _compiled(model, tokens, config=config, first=first)
    return x, x if (config.target or config.site) == config.site else y


_compiled = jax.jit(values_at, static_argnames=("config", "first"))


def _put(folder: Path, name: str, values: np.ndarray, number: int, chunks: int) -> None:
    """Write a chunk; what a killed run left of it is overwritten. chunks: that there are then."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    rows, shape = len(values), (chunks * len(values), *values.shape[1:])
    try:
        array = _array(folder, name, "r+")
        array.resize(shape)
    # There is none, or zarr cannot read its description; chunks stay. Nothing else, such as a disk
    # that fails, says anything about the description.
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        (folder / name / "zarr.json").unlink(missing_ok=True)
        array = zarr.create_array(
            folder / name, shape=shape, chunks=values.shape, dtype=values.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )  # fmt: skip
    array[number * rows : (number + 1) * rows] = values


def _array(folder: Path, name: str, mode: Any = "r") -> Any:
    import zarr

    return zarr.open_array(folder / name, mode=mode)
