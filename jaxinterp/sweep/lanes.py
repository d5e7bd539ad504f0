"""Lanes: how experiments lie in the slots that pass a layer together.

A lane has ``width`` slots of one token column each. It holds the suffix of one experiment, or
those of two that fit it, as language models are trained on packed sequences: each with its own
interventions, and blind to the other. Columns before a suffix are read from the base run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model import Frame, Tokens
from jaxinterp.model.layers import Context
from jaxinterp.model.taps import At, Intervention, apply


class Together(struct.PyTreeNode):
    """The interventions of the experiments in one lane: each changes its own slots."""

    members: tuple[tuple[Intervention, ...], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for member in self.members for i in member for s in i.sites))

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        axis = at.axes.index("position")
        shape = [*value.shape[:1], *[1] * (value.ndim - 1)]
        shape[axis] = value.shape[axis]
        assert at.frame.owner is not None
        owner, out = at.frame.owner.reshape(shape), value
        for number, interventions in enumerate(self.members):
            out = jnp.where(owner == number, apply(interventions, value, at), out)
        return out


@dataclasses.dataclass(frozen=True)
class Lane:
    """Where a lane's slots stand: whose they are, and what they may attend to.

    starts: the slot [S] at which each experiment begins. first: the column [S] there.
    """

    frame: Frame
    context: Context
    starts: jax.Array
    first: jax.Array

    def slots(self, columns: jax.Array) -> jax.Array:
        """The slots [B S*R] of some columns [B R], experiment by experiment."""
        held = columns[:, None] + (self.starts - self.first)[:, None]
        return held.clip(0, self.frame.positions.shape[1] - 1).reshape(len(columns), -1)


def lay_out(tokens: Tokens, whole: Context, first: jax.Array, width: int, prefix: int) -> Lane:
    """The lane of experiments that hold the columns from ``first`` [S] on.

    One experiment alone holds the last ``width`` columns. Keys are those of the first
    ``prefix`` columns of the base run, then the slots' own. An experiment that holds nothing
    (``first`` is the length) is none; slots that nobody holds are read by nobody.
    """
    length, members = tokens.shape[1], first.shape[0]
    if members == 1:
        begin = length - width
        frame = Frame(tokens.positions[:, begin:], slice(begin, length))
        return Lane(frame, whole, jnp.zeros(1, int), jnp.full(1, begin))
    ends = jnp.cumsum(length - first)
    starts = ends - (length - first)
    slot = jnp.arange(width)
    owner = (slot[:, None] >= ends).sum(-1)  # ``members``: nobody's
    mine = owner.clip(max=members - 1)
    columns = jnp.where(owner < members, first[mine] + slot - starts[mine], length - 1)
    before = jnp.arange(prefix) < jnp.append(first, 0)[owner][:, None]
    reach = jnp.concatenate([before, owner[:, None] == owner], -1)
    own = tokens.positions[:, columns]
    sources = jnp.concatenate([tokens.positions[:, :prefix], own], -1)
    columns, owner = (jnp.broadcast_to(a, own.shape) for a in (columns, owner))
    context = whole.replace(
        sources=sources, reach=jnp.broadcast_to(reach, (len(own), *reach.shape))
    )
    return Lane(Frame(own, columns, owner), context, starts, first)


def interventions_of(members: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What a tap is given for the experiments of one lane."""
    return members[0] if len(members) == 1 else (Together(tuple(members)),)
