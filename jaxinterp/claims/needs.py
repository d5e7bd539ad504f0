"""What running a claim again takes, told before anything is fetched or computed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxinterp.loading.folder import is_in_cache
from jaxinterp.loading.registry import BUILT_IN, is_cached
from jaxinterp.loading.shipped import shipped
from jaxinterp.model import Config, n_params, shapes
from jaxinterp.reading import LoadError, looked_up, parse_json

if TYPE_CHECKING:
    from jaxinterp.claims.claim import Claim

COMMIT = re.compile(r"[0-9a-f]{40}")  # what the hub calls a revision
Place = Literal["shipped", "local", "built-in", "hub", "nowhere"]
_WHERE = {
    "shipped": "comes with this library", "local": "is read from a local folder or file",
    "built-in": "is a built-in model", "hub": "is on the Hugging Face hub",
    "nowhere": "was not loaded from anywhere",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Needs:
    """What `Claim.rerun` loads, fetches and computes.

    model: the name, path or hub id that is loaded, at ``revision``. place: where it is; "nowhere"
    for a model that has to be given. fetches: whether it would be downloaded; of the hub, all but a
    commit that lies in the cache, since a branch may have moved on. size: bytes of its
    parameters (of the files, for a built-in model). experiments: interventions, one run each and
    one without for every experiment. prompts: sequences that go through the model in all.
    resamples: of each bootstrap interval.
    """

    model: str
    revision: str | None
    place: Place
    fetches: bool
    size: int
    experiments: int
    prompts: int
    resamples: int

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        size = f"about {self.size / 1e6:,.0f} MB"
        loaded = f"{size} are downloaded" if self.fetches else f"{size}, nothing is downloaded"
        return (
            f"{self.model!r}{at} {_WHERE[self.place]} ({loaded}); {self.experiments:,} "
            f"interventions and {self.prompts:,} prompts run through it."
        )


def needs_of(claim: Claim) -> Needs:
    """What the claim takes. Raises `LoadError` where its record of the model is no record."""
    said, name = claim.model, claim.source or claim.model["model"]
    commit = COMMIT.fullmatch(said["revision"]) and not claim.source
    revision = claim.revision or (said["revision"] if commit else None)
    place = _place(name, bool(claim.source or said["revision"]))
    size = n_params(shapes(config_of(said))) * np.dtype(_dtype(said["dtype"])).itemsize
    if place == "built-in":
        size = BUILT_IN[name].size
    fetches = False
    if place == "built-in":
        fetches = not is_cached(name)
    elif place == "hub":
        fetches = not (COMMIT.fullmatch(revision or "") and is_in_cache(name, str(revision)))
    runs = [len(e) for e in claim.experiments]
    prompts = sum((1 + n) * e.n_prompts for n, e in zip(runs, claim.experiments, strict=True))
    return Needs(name, revision, place, fetches, size, sum(runs), prompts, claim.resamples)


def config_of(record: Mapping[str, Any]) -> Config:
    """The architecture in the record of a claim's model. Raises `LoadError` for no architecture."""
    try:
        return Config.from_dict(parse_json(record["config"], "The config of the claim's model"))
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise LoadError(f"The config of the claim's model describes no model: {error}") from error


def check_record(record: Any) -> None:
    """Raises ``ValueError`` for what `jaxinterp.results.claim` does not write of a model."""
    if not isinstance(record, Mapping):
        raise ValueError("its model is no record")
    for field in ("model", "revision", "weights", "config", "dtype", "precision"):
        if not isinstance(record.get(field), str):
            raise ValueError(f"its model has the {field} {record.get(field)!r:.60}, expected text")
    _dtype(record["dtype"])
    config = json.loads(record["config"])
    if not isinstance(config, dict):
        raise ValueError("the config of its model is no record")


def _dtype(name: str) -> Any:
    import jax.numpy as jnp

    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"its model has the dtype {name!r:.60}, expected floats")
    return jnp.dtype(name)


def _place(name: str, known: bool) -> Place:
    """Where a name, path or hub id leads. A path of the network is no place to read from."""
    if name.startswith(("//", "\\\\")) or "\0" in name:
        raise LoadError(f"The claim's model is at {name!r:.80}: expected a local path, or a name.")
    if not known:
        return "nowhere"
    if name in BUILT_IN:
        return "built-in"
    if name in shipped():
        return "shipped"
    local = looked_up(name)[1] or name.startswith((".", "/", "~"))
    return "local" if local or name.endswith(".gguf") else "hub"
