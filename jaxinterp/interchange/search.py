"""Distributed alignment search: the subspace in which a model holds a causal model's variable.

Geiger et al. 2023 (arXiv:2303.02536): an orthonormal basis is trained so that exchanging the
component along it between two prompts makes the model say what the causal model says with the
variable exchanged. Wu et al. 2023 (arXiv:2305.08809), *boundless*: how many directions it takes
is learned too, by a boundary that sharpens as training goes on.

A basis found by gradient descent may work on the pairs it saw by breaking the model; so pairs are
held out, and a claim rests on those alone (Makelov et al. 2023, arXiv:2311.17030).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import real_number, whole_number
from jaxinterp.grid_runs import Driver, batch_size, recorded
from jaxinterp.interchange.accuracy import (
    Place,
    check_pairs,
    measured,
    pairs_result,
    part_at,
    place_of,
    position_in,
    said_of,
)
from jaxinterp.interchange.subspace import Interchange, replace_component
from jaxinterp.interchange.training import (
    Cells,
    Recipe,
    basis_of,
    before,
    check_recipe,
    in_batches,
    train,
    within,
)
from jaxinterp.metrics import Metric
from jaxinterp.model import SITES, Model, Tokens, as_tokens
from jaxinterp.model.sites import axis_size
from jaxinterp.results import claim
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr

Rank = int | Literal["boundless"]


def ignore_step(step: int, loss: jax.Array) -> None:
    """The default ``on_step``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """What a search found at one place.

    basis [D k]: orthonormal. losses [steps]: of the pairs each step saw. result: of the pairs
    held out, as `interchange_accuracy` gives it ("prompt": their numbers).
    """

    place: Place
    basis: np.ndarray
    losses: np.ndarray
    result: xr.DataArray

    @property
    def rank(self) -> int:
        """How many directions."""
        return self.basis.shape[1]

    @property
    def accuracy(self) -> float:
        """The mean over the pairs held out."""
        return float(self.result.mean())

    def interchange(
        self, model: Model, source: Any, *, position: Any = None, source_position: Any = None
    ) -> Interchange:
        """The intervention, for source prompts of one's own.

        position, source_position: as in `train_das`. They may be left out where all pairs of the
        search had the same.

        Raises ``ValueError`` where positions are needed.
        """
        source, own = as_tokens(source), self.place
        if position is None and own.position is not None:
            position, theirs = own.position[0], own.source_position
            if (own.position != position).any() or (theirs != theirs[0]).any():  # type: ignore[index]
                raise ValueError("The search had a position of its own for each pair: give them.")
            source_position = theirs[0] if source_position is None else source_position  # type: ignore[index]
        theirs = position if source_position is None else source_position
        if theirs is not None:
            theirs = position_in(source, theirs, "source_position")
        values = recorded(model, source, sites=(own.site,))[own.site][own.layer]
        given = part_at(values, source, theirs, own.head)
        return replace_component(
            own.site, given, self.basis, layer=own.layer, position=position, head=own.head
        )


def train_das(
    model: Model,
    *,
    base: Any,
    source: Any,
    labels: Any = None,
    choices: Any = None,
    metric: Metric | None = None,
    read_at: Any = None,
    site: str = "resid_post",
    layer: int | None = None,
    position: Any = None,
    source_position: Any = None,
    head: int | None = None,
    rank: Rank = 1,
    steps: int = 300,
    learning_rate: float = 0.1,
    batch: int = 32,
    held_out: float = 0.25,
    penalty: float = 0.05,
    temperature: tuple[float, float] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    record: Mapping[str, Any] | None = None,
    on_step: Callable[[int, jax.Array], None] = ignore_step,
) -> Alignment:
    """Train the subspace of a variable at one place, and measure it on pairs held out.

    base, source, labels, choices, metric, read_at, site, layer, position, source_position, head: as
    in `interchange_accuracy`. Minimised is the cross-entropy of the labels (among the choices),
    or minus the metric; with Adam, whose rate decays to 0 as a cosine.

    rank: the number of directions, or "boundless": of a whole rotation [D D] the directions
    before a learned boundary count, softly at first: by a temperature that falls geometrically
    from the first to the last of ``temperature`` (in directions; default: D / 8 to 0.1). At the
    end it is rounded to whole directions. Each of them costs ``penalty`` nats, so that one that
    gains less is left out (Wu et al. penalise the boundary as a share of the width: then what a
    direction costs depends on D).

    held_out: the share of pairs, drawn by ``seed``, that training does not see. on_step: called
    with the step and its loss.

    Costs per step a forward and a backward pass of ``batch`` prompts from the layer on, and the
    QR of [D k]. Streams of all training prompts before that layer are held: [n P D].

    Raises ``ValueError`` as `interchange_accuracy` does, and for a rank beyond the site's width.
    """
    base, source, goal = check_pairs(model, base, source, labels, choices, metric, read_at)
    place = place_of(model, base, source, site, layer, position, source_position, head)
    recipe, width = recipe_of(
        model, place.site, rank, steps, learning_rate, batch, seed, penalty, temperature
    )
    size = batch_size(model, base, None, memory)
    fitted, held = split(len(base), held_out, seed)
    values = layer_values(model, source[fitted], place.site, place.layer, size)
    own, sources = place.of(fitted), source[fitted]
    given = np.asarray(part_at(values, sources, own.source_position, own.head))[None]
    at = {"position": own.position, "head": own.head}
    where = {axis: jnp.asarray(index)[None] for axis, index in at.items() if index is not None}
    streams = streams_before(model, base[fitted], place.layer, size)
    fit, losses = train(
        model, goal.of(fitted), base[fitted], place.site, place.layer, streams,
        Cells(where, given), recipe, lambda step, loss: on_step(step, loss[0]),
    )  # fmt: skip
    bases, ranks = basis_of(fit)
    basis = bases[0][:, : ranks[0]]
    driver = Driver.of(model, base[held], (), memory=memory)
    found = measured(driver, base[held], source[held], goal.of(held), place.of(held), basis)
    attrs = claim(
        model, intervention="interchange", method=method(rank), **place.describe(),
        **recipe.describe(width), held_out=held_out, found_rank=int(ranks[0]),
        **said_of(goal, base, source), **dict(record or {}),
    )  # fmt: skip
    result = pairs_result(goal, found[2], {"base": found[0], "full": found[1]}, attrs)
    return Alignment(place, basis, losses[:, 0], result.assign_coords(prompt=held))


def split(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, both sorted. A share of 0: the same rows for both."""
    share = real_number("held_out", share, least=0, below=1)
    count = round(share * n)
    if share and not 0 < count < n:
        raise ValueError(
            f"held_out={share} of {n} pairs leaves none on one side: give more pairs, or "
            "held_out=0 to measure on those that are trained on."
        )
    shuffled = np.random.default_rng(seed).permutation(n)
    fitted, held = np.sort(shuffled[count:]), np.sort(shuffled[:count])
    return fitted, held if share else fitted


def streams_before(model: Model, tokens: Tokens, layer: int, size: int) -> jax.Array:
    """The streams [n P D] before a layer."""
    parts = [before(model, own, jnp.int32(layer)) for _, own in in_batches(tokens, size)]
    return jnp.concatenate(parts)[: len(tokens)]


def layer_values(model: Model, tokens: Tokens, site: str, layer: int, size: int) -> np.ndarray:
    """A site's values [n P ...] in one layer."""
    index = jnp.int32(layer)
    parts = [
        to_host(within(model, before(model, own, index), own, index, site=site))
        for _, own in in_batches(tokens, size)
    ]
    return np.concatenate(parts)[: len(tokens)]


def method(rank: Rank) -> str:
    """The method's name, for a claim."""
    return (
        "boundless distributed alignment search"
        if rank == "boundless"
        else "distributed alignment search"
    )


def recipe_of(
    model: Model, site: str, rank: Rank, steps: int, learning_rate: float, batch: int, seed: int,
    penalty: float, temperature: tuple[float, float] | None,
) -> tuple[Recipe, int]:  # fmt: skip
    """How to train, checked, and the width of the site."""
    width = axis_size(model.config, SITES[site], SITES[site].axes[-1]) or 0
    if isinstance(rank, str) and rank != "boundless":
        raise ValueError(f"rank={rank!r}, expected a number of directions or 'boundless'.")
    number = None if isinstance(rank, str) else whole_number("rank", rank, 1, width)
    recipe = Recipe(number, steps, learning_rate, batch, seed, penalty, temperature)
    check_recipe(recipe, width)
    return recipe, width
