"""Interchange accuracy: how often the model says what the causal model says it should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.grid_runs import Driver, check_pair, recorded
from jaxinterp.interchange.subspace import check_site, replace_component
from jaxinterp.interventions import axes_of, replace
from jaxinterp.metrics import (
    Metric,
    accuracy,
    check_metric,
    evaluate,
    log_prob,
    metric,
    of_prompts,
)  # fmt: skip
from jaxinterp.metrics.arguments import token_ids
from jaxinterp.model import SITES, Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import axis_size, parse
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.results import claim, fingerprint
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr


class Goal(NamedTuple):
    """What a search maximises, and what is reported: metrics of the base prompts."""

    objective: Metric
    score: Metric
    name: str

    def of(self, rows: Any) -> Goal:
        """For some of the pairs."""
        return Goal(of_prompts(self.objective, rows), of_prompts(self.score, rows), self.name)


class Place(NamedTuple):
    """Where an exchange happens: a layered site, and one position per prompt (None: all)."""

    site: str
    layer: int
    position: np.ndarray | None = None  # [n]
    source_position: np.ndarray | None = None  # [n]
    head: int | None = None

    def of(self, rows: Any) -> Place:
        """For some of the pairs."""
        if self.position is None or self.source_position is None:
            return self
        return self._replace(
            position=self.position[rows], source_position=self.source_position[rows]
        )

    @property
    def where(self) -> dict[str, Any]:
        """The arguments of `replace_component`."""
        return {"layer": self.layer, "position": self.position, "head": self.head}

    def describe(self) -> dict[str, Any]:
        """For the claim."""
        said = {**self._asdict(), "position": index_of(self.position)}
        said["source_position"] = index_of(self.source_position)
        return {name: value for name, value in said.items() if value is not None}


def interchange_accuracy(
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
    basis: Any = None,
    weights: Any = None,
    batch: int | None = None,
    memory: int = MEMORY,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """For each pair 1 where the model's answer under the interchange is the label, else 0.

    base, source: prompts, pair by pair. labels: token ids of the counterfactual outputs, [n] or
    sets [n k] (any of them is right). choices: token ids [m] (or [n m]) among which the top one
    is taken (the first of equals); None: the whole vocabulary. read_at: the position where the
    answer is read, as in a metric (None: the last). metric: in place of labels, any metric of the
    base prompts; its values are returned.

    site, layer, position, head: where; position None (all of them; the prompts then match token by
    token), an int, or one per pair [n]. source_position: the same in the source prompts, where it
    differs. basis [D k], weights [k]: as in `replace_component`; without a basis the whole value
    is exchanged (plain interchange, Geiger et al. 2021, arXiv:2106.02997).

    Returns an ``xarray.DataArray`` with dim "prompt". Coordinates: ``base``, the same without the
    interchange; ``full``, with the whole value exchanged. The mean is the interchange
    accuracy (IIA). Raises ``ValueError`` for pairs that do not match, and what does not exist.
    """
    base, source, goal = check_pairs(model, base, source, labels, choices, metric, read_at)
    place = place_of(model, base, source, site, layer, position, source_position, head)
    driver = Driver.of(model, base, (), batch=batch, memory=memory)
    found = measured(driver, base, source, goal, place, basis, weights)
    kind: dict[str, Any] = {"basis": "whole value"}
    if basis is not None:
        kind = {"rank": int(np.shape(basis)[-1]), "basis": fingerprint(basis, weights)}
    attrs = claim(
        model, intervention="interchange", **place.describe(), **kind,
        **said_of(goal, base, source), **dict(record or {}),
    )  # fmt: skip
    return pairs_result(goal, found[2], {"base": found[0], "full": found[1]}, attrs)


def measured(
    driver: Driver, base: Tokens, source: Tokens, goal: Goal, place: Place, basis: Any,
    weights: Any = None,
) -> np.ndarray:  # fmt: skip
    """[3 n]: the score as it is, with the whole value exchanged, and with its component."""

    def run(rows: np.ndarray) -> np.ndarray:
        own = place.of(rows)
        values = recorded(driver.model, source[rows], sites=(own.site,))[own.site][own.layer]
        given = part_at(values, source[rows], own.source_position, own.head)
        whole = replace(own.site, given, **own.where)
        part = whole
        if basis is not None:
            part = replace_component(own.site, given, basis, weights=weights, **own.where)
        score, edits = goal.of(rows).score, ((), whole, part)
        found = [evaluate(score, driver.model, base[rows], edit) for edit in edits]
        return np.stack([to_host(values) for values in found])

    return driver.batches(run, 1)


def said_of(goal: Goal, base: Tokens, source: Tokens) -> dict[str, Any]:
    """What was asked of which pairs, for the claim."""
    return {
        "metric": goal.score.describe(), "n_prompts": len(base), "prompts": fingerprint(base),
        "source_prompts": fingerprint(source),
    }  # fmt: skip


def pairs_result(
    goal: Goal, values: np.ndarray, baselines: dict[str, np.ndarray], attrs: dict[str, Any]
) -> xr.DataArray:
    """The labelled values [n] of pairs."""
    import xarray as xr

    coords: dict[str, Any] = {"prompt": np.arange(len(values))}
    coords |= {name: ("prompt", value) for name, value in baselines.items()}
    return xr.DataArray(values, coords, ("prompt",), goal.name, attrs)


def check_pairs(
    model: Model, base: Any, source: Any, labels: Any, choices: Any, metric: Metric | None,
    read_at: Any,
) -> tuple[Tokens, Tokens, Goal]:  # fmt: skip
    """The two sides and the goal, checked against the model and each other."""
    base, source = as_tokens(base), as_tokens(source)
    for tokens in (base, source):
        check_tokens(model.config, tokens)
    if len(base) != len(source):
        raise ValueError(
            f"There are {len(base)} base and {len(source)} source prompts: give each base prompt "
            "its source."
        )
    goal = goal_of(len(base), labels, choices, metric, read_at)
    for each in (goal.objective, goal.score):
        check_metric(each, model, base)
    return base, source, goal


def goal_of(n: int, labels: Any, choices: Any, given: Metric | None, read_at: Any) -> Goal:
    """Cross-entropy and accuracy of labels, or a given metric for both."""
    if (labels is None) == (given is None):
        raise ValueError("Give labels= (token ids) or metric=, one of the two.")
    if given is not None:
        if choices is not None or read_at is not None:
            raise ValueError("choices= and read_at= go with labels=; a metric has its own.")
        return Goal(given, given, given.name)
    ids = token_ids(labels, "labels")
    if len(ids) not in (1, n):
        raise ValueError(f"There are {len(ids)} labels for {n} pairs: give one for each.")
    name = "interchange_accuracy"
    if choices is None:
        return Goal(log_prob(labels, read_at), accuracy(labels, read_at), name)
    ids = np.broadcast_to(np.asarray(ids), (n, ids.shape[1]))
    shared = not any(np.ndim(each) for each in choices)
    some = token_ids([list(choices)] if shared else choices, "choices")
    some = np.broadcast_to(np.asarray(some), (n, some.shape[1]))
    same = (some[:, :, None] == some[:, None]) & np.tri(some.shape[1], k=-1, dtype=bool)
    held = (some >= 0) & ~same.any(-1)  # each token once
    hit = (some[:, :, None] == np.where(ids < 0, -2, ids)[:, None]).any(-1) & held
    if not hit.any(-1).all():
        bad = int(np.argmin(hit.any(-1)))
        raise ValueError(
            f"The label of pair {bad} is {ids[bad].tolist()}, which is none of its choices "
            f"{some[bad].tolist()}: add it, or leave out choices=."
        )
    data, vocabulary = (held, hit), np.where(some < 0, 0, some)
    return Goal(
        metric(log_prob_among, read_at, data=data, vocabulary=vocabulary),
        metric(accuracy_among, read_at, data=data, vocabulary=vocabulary),
        name,
    )


def log_prob_among(logits: jax.Array, held: jax.Array, hit: jax.Array) -> jax.Array:
    """[B R C] to [B]: log-probability of the tokens that ``hit`` marks, among those ``held``."""
    inside = jnp.where(held[:, None], wide(logits), -jnp.inf)
    own = jax.nn.logsumexp(jnp.where(hit[:, None], inside, -jnp.inf), -1)
    return (own - jax.nn.logsumexp(inside, -1)).mean(-1)


def accuracy_among(logits: jax.Array, held: jax.Array, hit: jax.Array) -> jax.Array:
    """[B R C] to [B]: 1 where the top token of those ``held`` is one that ``hit`` marks."""
    top = jnp.where(held[:, None], logits, -jnp.inf).argmax(-1)
    right = jnp.take_along_axis(jnp.asarray(hit)[:, None], top[..., None], -1)[..., 0]
    right = right.astype(wide_dtype(logits))
    return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, right).mean(-1)


def place_of(
    model: Model, base: Tokens, source: Tokens, site: str, layer: int | None, position: Any,
    source_position: Any, head: int | None,
) -> Place:  # fmt: skip
    """Where an exchange happens, checked."""
    name, named = parse(site)
    if layer is not None and named is not None:
        raise ValueError(f"{site!r} names layer {named} already: leave out layer=.")
    layer = named if layer is None else layer
    check_places(model, name, base, source, whole=position is None)
    layer = whole_number("layer", layer, 0, model.config.n_layers - 1)
    if position is None and source_position is not None:
        raise ValueError("source_position= is given without position=.")
    has = "head" in SITES[name].axes
    heads = axis_size(model.config, SITES[name], "head") if has else None
    if head is not None and not heads:
        raise ValueError(f"head={head}, but {name!r} has no heads: leave it out.")
    head = whole_number("head", head, 0, (heads or 1) - 1, optional=True)
    if position is None:
        return Place(name, layer, head=head)
    theirs = position if source_position is None else source_position
    return Place(
        name, layer, position_in(base, position, "position"),
        position_in(source, theirs, "source_position"), head,
    )  # fmt: skip


def check_places(model: Model, site: str, base: Tokens, source: Tokens, whole: bool) -> None:
    """Refuse sites that cannot be searched; ``whole``: all positions are exchanged at once."""
    check_site(site)
    axes_of(model.config, site)  # the model has it
    if not SITES[site].layered:
        raise ValueError(
            f"Site {site!r} occurs once and not in every layer: take resid_pre of layer 0, or "
            "resid_post of the last one."
        )
    if whole:
        check_pair(model, base, source, names=("base", "source"))


def position_in(tokens: Tokens, position: Any, what: str) -> np.ndarray:
    """One position within each prompt [n]."""
    at, lengths = np.asarray(position), np.asarray(tokens.lengths)
    if at.dtype.kind not in "iu" or at.shape not in ((), lengths.shape):
        raise ValueError(
            f"{what} is {at.dtype}{list(at.shape)}, expected a position from 0, or one for each of "
            f"the {len(lengths)} pairs."
        )
    at = np.broadcast_to(at, lengths.shape)
    if (at < 0).any() or (at >= lengths).any():
        bad = int(np.argmax((at < 0) | (at >= lengths)))
        raise ValueError(
            f"{what} is {at[bad]} in pair {bad}, whose prompt has {lengths[bad]} tokens (positions "
            "count within the prompt, from 0)."
        )
    return at


def part_at(
    values: Any, tokens: Tokens, position: np.ndarray | None, head: int | None
) -> jax.Array:
    """What stands at a position [B] and head of values [B P (H) D]; both axes stay, of length 1."""
    if position is not None:
        columns = np.asarray(tokens.columns(position))
        index = columns.reshape(-1, *[1] * (values.ndim - 1))
        values = (np if isinstance(values, np.ndarray) else jnp).take_along_axis(values, index, 1)
    return values if head is None else values[:, :, head : head + 1]


def index_of(position: np.ndarray | None) -> Any:
    """A position for the claim: one number where all pairs share it."""
    if position is None:
        return None
    return int(position[0]) if (position == position[0]).all() else position.tolist()
