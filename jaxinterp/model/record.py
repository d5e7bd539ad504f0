"""What a run keeps: whole sites, stacked over layers, and single layers of a site."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp.model import sites
from jaxinterp.model.config import Config

Values = dict[str, jax.Array]


@jax.tree_util.register_pytree_with_keys_class
class Activations(dict[str, jax.Array]):
    """Recorded values by site. TransformerLens's names are understood: one layer of them."""

    def __missing__(self, name: str) -> jax.Array:
        try:
            site, layer = sites.parse(name)
        except ValueError as error:
            raise KeyError(str(error)) from error
        if site not in self:
            has = ", ".join(self) or "nothing"
            raise KeyError(f"{name!r} was not recorded, {has} was: name it in record=.")
        return self[site] if layer is None else self[site][layer]

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, jax.Array]], tuple[str, ...]]:
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> Activations:
        return cls(zip(names, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Record:
    """What to keep. whole: sites, at every layer. single: (site, layer) of sites kept in part."""

    whole: tuple[str, ...] = ()
    single: tuple[tuple[str, int], ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of which anything is kept."""
        return tuple(dict.fromkeys((*self.whole, *(site for site, _ in self.single))))

    def single_names(self) -> list[tuple[str, int]]:
        """The names under which single layers are returned, each with its layer."""
        return [(sites.hook_name(site, layer), layer) for site, layer in self.single]

    def stacked(self, recorded: Mapping[str, jax.Array]) -> Values:
        """Of one layer's values, those that a scan stacks over layers."""
        return {site: value for site, value in recorded.items() if site in self.whole}

    def room(self, recorded: Mapping[str, Any]) -> Values:
        """Zeros for the single layers, from the shapes of one layer's values."""
        return {
            sites.hook_name(site, layer): jnp.zeros(recorded[site].shape, recorded[site].dtype)
            for site, layer in self.single
        }

    def kept(self, room: Values, recorded: Mapping[str, jax.Array], index: jax.Array) -> Values:
        """The single layers, after layer ``index`` (traced) was run."""
        kept = {}
        for site, layer in self.single:
            name = sites.hook_name(site, layer)
            kept[name] = jnp.where(index == layer, recorded[site], room[name])
        return kept


def as_record(config: Config, record: Record | Iterable[str]) -> Record:
    """A `Record` of our or TransformerLens's names; every one exists in the architecture.

    ``"blocks.3.attn.hook_z"`` is layer 3 of ``"z"``, which alone is kept unless all layers are.

    Raises ``ValueError`` for a name that is no site, a site that the architecture lacks, and a
    layer that the model does not have.
    """
    if isinstance(record, Record):
        return record
    whole, single = [], []
    for given in (record,) if isinstance(record, str) else record:
        site, layer = sites.parse(given)
        sites.require(config, site)
        if layer is None:
            whole.append(site)
        elif layer < config.n_layers:
            single.append((site, layer))
        else:
            raise ValueError(f"{given!r}: the model has layers 0 to {config.n_layers - 1}.")
    some = dict.fromkeys(each for each in single if each[0] not in whole)
    return Record(tuple(dict.fromkeys(whole)), tuple(some))


def whole_sites(config: Config, names: Iterable[str]) -> tuple[str, ...]:
    """The sites of these names, for what is done at all layers of each.

    Raises ``ValueError`` as `as_record` does, and for a name of a single layer.
    """
    record = as_record(config, names)
    if record.single:
        site, layer = record.single[0]
        raise ValueError(
            f"{sites.hook_name(site, layer)!r} names layer {layer} alone; all layers are taken "
            f"here: pass {site!r}."
        )
    return record.whole


def scan_layers(
    run: Callable[[Any, Any], tuple[Any, Any, Values]], carry: Any, layers: Any, record: Record
) -> tuple[Any, tuple[Any, Values]]:
    """``jax.lax.scan`` over layers, which keeps of each layer's values what ``record`` names.

    run: maps (carry, layer) to (carry, what is stacked besides, the layer's values by site);
    ``layers`` has a leaf ``index``. Returns the carry, what was stacked, and the values that are
    kept, by name.
    """

    def step(state: tuple[Any, Values], layer: Any) -> tuple[tuple[Any, Values], Any]:
        carry, room = state
        carry, also, recorded = run(carry, layer)
        room = record.kept(room, recorded, layer.index)
        return (carry, room), (also, record.stacked(recorded))

    room: Values = {}
    if record.single:
        first = jax.tree.map(lambda leaf: leaf[0], layers)
        room = record.room(jax.eval_shape(run, carry, first)[2])
    (carry, room), (also, stacked) = jax.lax.scan(step, (carry, room), layers)
    return carry, (also, {**stacked, **room})
