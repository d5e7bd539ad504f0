"""Models that come with the library: small, trained by its scripts, each with a card.

``weights/<name>/`` holds card.json, model.safetensors (an array per leaf of the parameters, by
its path: "embed.W_E"), step-<n>.safetensors for models of the way, the tokenizer's files, and under
other words arrays that were found in the model (`attach`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp.files import content, whole, whole_folder
from jaxinterp.loading.reading import own_config, read_json, read_tokenizer, sha256
from jaxinterp.loading.registry import BUILT_IN
from jaxinterp.loading.sharding import shardings
from jaxinterp.loading.tensors import Safetensors
from jaxinterp.model import Config, Model, n_params, shapes
from jaxinterp.reading import LoadError, looked_up

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

LIMIT = 10_000_000  # bytes of all files of a model
CARD = "card.json"
_WEIGHTS = "model.safetensors"
_AGAIN = "Take the folder from the repository again, or train it anew with its recipe."


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a shipped model.

    config: `Config.to_dict`. data: what it was trained on. recipe: the command that trains it.
    steps: updates. compute: seconds, machine and date. metrics: measured on held-out data.
    files: the SHA-256 of each file beside the card.
    """

    name: str
    description: str
    config: dict[str, Any]
    data: str
    recipe: str
    seed: int
    steps: int
    compute: dict[str, Any]
    metrics: dict[str, float]
    licence: str
    files: dict[str, str]

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps of training whose models are there beside the last: `revision="step-<n>"`."""
        found = (re.fullmatch(r"step-(\d+)\.safetensors", file) for file in self.files)
        return tuple(sorted(int(match[1]) for match in found if match))

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of arrays that come beside the weights, for `attached`."""
        found = (re.fullmatch(r"([a-z]+)\.safetensors", file) for file in self.files)
        return tuple(match[1] for match in found if match and match[1] != "model")

    def architecture(self) -> str:
        """The config in one line."""
        c = Config.from_dict(self.config)
        sees = "causal" if c.causal else "bidirectional"
        mlp = f"MLPs of {c.d_mlp} ({c.act})" if c.d_mlp else "attention only"
        layers = f"{c.n_layers} layer{'s' if c.n_layers > 1 else ''}"
        return (
            f"{layers} of width {c.d_model}, {c.n_heads} heads of {c.d_head}, {mlp}, {sees}; "
            f"{c.positions} positions, context {c.n_ctx}, vocabulary {c.vocab_size}; "
            f"{n_params(shapes(c)):,} parameters"
        )

    def markdown(self) -> str:
        """The card as a page."""
        rows = {
            "architecture": self.architecture(), "data": self.data, "recipe": f"`{self.recipe}`",
            "seed": self.seed, "steps": f"{self.steps:,}",
            "compute": ", ".join(f"{name}: {value}" for name, value in self.compute.items()),
            "kept on the way": ", ".join(f"`step-{n}`" for n in self.kept), "licence": self.licence,
        }  # fmt: skip
        metrics = {name: f"{value:.6g}" for name, value in self.metrics.items()}
        files = {f"`{name}`": f"`{digest}`" for name, digest in self.files.items()}
        parts = [
            f"# {self.name}", self.description,
            _table("", "", {name: value for name, value in rows.items() if value != ""}),
            _table("metric", "value", metrics), _table("file", "SHA-256", files),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"


def _table(left: str, right: str, rows: Mapping[str, Any]) -> str:
    lines = [(left, right), ("---", "---"), *rows.items()]
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def weights_folder() -> Path:
    """Where the shipped models lie: inside an installed package, or in the repository."""
    package = Path(__file__).parents[1]
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def shipped() -> tuple[str, ...]:
    """The names of the shipped models, for `jaxinterp.load` and `card`."""
    return tuple(sorted(file.parent.name for file in weights_folder().glob(f"*/{CARD}")))


def find(name: str | os.PathLike[str]) -> Path | None:
    """The folder of a shipped model, by its name or itself; None where there is none."""
    text = os.fspath(name)
    if text in BUILT_IN:  # a local folder does not shadow it
        return None
    path = weights_folder() / text if text in shipped() else looked_up(text)[0]
    return path.absolute() if (path / CARD).is_file() else None


def card(name: str | os.PathLike[str]) -> Card:
    """The card of a shipped model, or of a folder that `ship` wrote.

    Raises `LoadError` where there is none, or it is damaged.
    """
    folder = find(name)
    if folder is None:
        has = f"one of {', '.join(shipped())}" if shipped() else "a folder with a card.json"
        raise LoadError(f"{os.fspath(name)!r} is no shipped model: expected {has}.")
    path = folder / CARD
    found = read_json(path)
    try:
        read = Card(**found)
        own_config(read.config, path)
        if not all(isinstance(digest, str) for digest in read.files.values()):
            raise TypeError("its files have no SHA-256")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LoadError(f"The card {path} is damaged ({error!r}). {_AGAIN}") from error
    if read.name != folder.name or _WEIGHTS not in read.files:
        raise LoadError(
            f"The card {path} is of {read.name!r} and lists {', '.join(read.files) or 'no files'}: "
            f"expected {folder.name!r} with {_WEIGHTS}. {_AGAIN}"
        )
    return read


def load_shipped(
    folder: Path, dtype: Any, mesh: Any, revision: str | None
) -> tuple[Model, Tokenizer | None]:
    """A shipped model, of the end of training or of a step kept, over ``mesh`` if one is given."""
    its = card(folder)
    file = _WEIGHTS if revision is None else f"{revision}.safetensors"
    if revision is not None and revision not in [f"step-{n}" for n in its.kept]:
        has = ", ".join(f"step-{n}" for n in its.kept) or "it has none"
        raise LoadError(
            f"{its.name!r} has no revision {revision!r}: expected a step kept on the way ({has}), "
            "or None for the trained model."
        )
    for other, digest in its.files.items():
        if other == file or not other.endswith(".safetensors"):
            _verify(folder / other, digest)
    config = Config.from_dict(its.config)
    params = _params(folder / file, config, dtype, mesh)
    return Model(params, config, its.name, its.files[file]), read_tokenizer(folder)


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise LoadError(f"{path} is missing, but {CARD} lists it. {_AGAIN}")
    if (found := sha256([path])) != digest:
        raise LoadError(
            f"{path} has SHA-256 {found}, expected {digest} (its {CARD}): it was changed. {_AGAIN}"
        )


def _params(file: Path, config: Config, dtype: Any, mesh: Any) -> Any:
    """The parameter tree of a config from a file of its leaves."""
    tensors, tree = Safetensors([file], str(file)), shapes(config, dtype)
    if differs := _differs({name: tensors.read(name) for name in tensors.names()}, config):
        raise LoadError(f"{file} holds {differs}. {_AGAIN}")

    def leaf(path: tuple[Any, ...], want: jax.ShapeDtypeStruct, at: Any) -> jax.Array:
        with np.errstate(over="ignore"):
            host = tensors.read(_name(path)).astype(want.dtype)
        if not np.isfinite(host).all():
            raise LoadError(
                f"{_name(path)} of {file} has values beyond {want.dtype}: load with "
                "dtype=jnp.float32."
            )
        return jax.device_put(host, None if mesh is None else at)

    return jax.tree_util.tree_map_with_path(leaf, tree, shardings(tree, mesh))


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their paths, as "blocks.attn.W_Q"."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(key.name for key in path)


def _differs(arrays: Mapping[str, np.ndarray], config: Config) -> str:
    """The first array that a config has no place for or lacks, "" where they belong together."""
    wanted = {name: leaf.shape for name, leaf in _by_path(shapes(config)).items()}
    for name in sorted({*wanted, *arrays}):
        there = arrays[name].shape if name in arrays else None
        if there != wanted.get(name):
            return f"{name} of shape {there}, where its config says {wanted.get(name)}"
    return ""


def ship(
    folder: str | os.PathLike[str],
    model: Model,
    *,
    tokenizer: Tokenizer | None = None,
    kept: Mapping[int, Model] = {},
    description: str,
    data: str,
    recipe: str,
    seed: int,
    steps: int,
    compute: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licence: str = "Apache-2.0",
) -> Card:
    """Write a model's folder, whole or not at all, in place of one that may be there.

    folder: ``weights/<name>``; its last part is the model's name. kept: models of the way, by
    their number of updates (`training.Trained.kept`). The rest: see `Card`.

    Raises ``ValueError`` for a name that is taken or cannot be one, parameters that are not
    finite float32, kept models of another config or beyond ``steps``, metrics that are not
    finite, and files of more than 10 MB; ``FileExistsError`` where the folder holds no model, or
    files that its card does not list.
    """
    place = Path(folder).absolute()
    _check_name(place.name)
    if place.exists() and not (place / CARD).is_file():
        raise FileExistsError(f"{place} is there already and holds no {CARD}: choose another.")
    kept = {operator.index(n): kept[n] for n in sorted(kept)}
    for n, other in kept.items():
        if not 0 <= n <= steps or other.config != model.config:
            raise ValueError(
                f"kept[{n}] is no model of the way: expected 0 to {steps} updates and the config "
                "of the trained model."
            )
    measured = {name: float(value) for name, value in metrics.items()}
    if bad := [name for name, value in measured.items() if not math.isfinite(value)]:
        raise ValueError(f"The metric {bad[0]!r} is {measured[bad[0]]}: leave it out or mend it.")
    files = {_WEIGHTS: model, **{f"step-{n}.safetensors": other for n, other in kept.items()}}
    arrays = {file: _arrays(file, one) for file, one in files.items()}
    from safetensors.numpy import save_file

    ours = [*card(place).files, CARD] if place.exists() else []  # what may be replaced
    with whole_folder(place, overwrite=True, listed=ours) as partial:
        for file, each in arrays.items():
            save_file(each, partial / file)
        if tokenizer is not None:
            tokenizer.save(partial)
        written = content(partial)
        size = sum((partial / file).stat().st_size for file in written)
        if size > LIMIT:
            raise ValueError(
                f"The files of {place.name} have {size:,} bytes, expected at most {LIMIT:,}: keep "
                "fewer models of the way, or train a smaller one."
            )
        made = Card(
            name=place.name, description=description, config=model.config.to_dict(), data=data,
            recipe=recipe, seed=operator.index(seed), steps=operator.index(steps),
            compute=dict(compute), metrics=measured, licence=licence,
            files={file: sha256([partial / file]) for file in written},
        )  # fmt: skip
        text = _written(made)
        (partial / CARD).write_text(text, encoding="utf-8")
    return Card(**json.loads(text))  # lists for tuples, as it will be read


def attach(folder: str | os.PathLike[str], name: str, arrays: Mapping[str, Any]) -> Card:
    """Put arrays beside a shipped model, as ``<name>.safetensors``, and list them in its card.

    For what was found in it, such as probes; `attached` reads them. Raises ``ValueError`` for a
    name that is taken by weights, arrays that are not finite float32, and more than 10 MB in all.
    """
    from safetensors.numpy import save_file

    its, place, file = card(folder), Path(folder), f"{name}.safetensors"
    if not re.fullmatch("[a-z]+", name) or file == _WEIGHTS:
        raise ValueError(f"{name!r} cannot be the name of arrays: expected a word, not 'model'.")
    given = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    _check_floats(given, file)
    others = sum((place / other).stat().st_size for other in its.files if other != file)
    if (size := others + sum(array.nbytes for array in given.values())) > LIMIT:
        raise ValueError(f"With {name} there are {size:,} bytes, expected at most {LIMIT:,}.")
    with whole(place / file) as temporary:
        save_file(given, temporary)
    made = dataclasses.replace(its, files=its.files | {file: sha256([place / file])})
    with whole(place / CARD) as temporary:
        temporary.write_text(_written(made), encoding="utf-8")
    return made


def attached(model: str | os.PathLike[str], name: str) -> dict[str, np.ndarray]:
    """The arrays that come beside a shipped model, by its name or folder; checked as weights are.

    Raises `LoadError` where there are none of that name, or they were changed.
    """
    its, file = card(model), f"{name}.safetensors"
    if file not in its.files or file == _WEIGHTS:
        has = ", ".join(its.attached) or "none"
        raise LoadError(f"{its.name!r} has no arrays {name!r} beside it: expected one of: {has}.")
    path = (find(model) or Path(model)) / file
    _verify(path, its.files[file])
    tensors = Safetensors([path], str(path))
    return {key: np.asarray(tensors.read(key)) for key in tensors.names()}


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} cannot be a shipped model's name: expected lower-case words and numbers "
            "with single hyphens between them, such as 'induction-2l'."
        )
    if name in BUILT_IN:
        raise ValueError(f"{name!r} is a built-in model's name: choose another.")


def _arrays(file: str, model: Model) -> dict[str, np.ndarray]:
    """The leaves of a model as they are stored."""
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _by_path(model.params).items()}
    if differs := _differs(arrays, model.config):
        raise ValueError(f"The model for {file} holds {differs}: mend one of the two.")
    _check_floats(arrays, file)
    return arrays


def _check_floats(arrays: Mapping[str, np.ndarray], file: str) -> None:
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(
                f"{name} for {file} is {array.dtype}, or not finite: expected finite float32."
            )


def _written(its: Card) -> str:
    return json.dumps(dataclasses.asdict(its), indent=2) + "\n"
