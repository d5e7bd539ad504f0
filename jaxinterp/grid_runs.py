"""Grid runs: what every method that sweeps cells over prompts shares.

Prompts run in batches of one shape, so that all of them share programs; finished batches are
kept, so that a killed call resumes; cells that the tokens show to be unchanged are not run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from jaxinterp.cells import Cells
from jaxinterp.checks import whole_number
from jaxinterp.interventions import Shared
from jaxinterp.metrics import Metric
from jaxinterp.model import SITES, Model, Tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import parse
from jaxinterp.results import Parts, fingerprint, weights_digest
from jaxinterp.sweep import Base, Ledger, sweep
from jaxinterp.sweep.devices import checked, place_model, place_tokens
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    from jax.sharding import Mesh

Direction = Literal["denoise", "noise"]
BATCH = 32  # prompts per program, at most


def ignore(experiments: int) -> None:
    """The default ``on_done``."""


@dataclasses.dataclass(frozen=True)
class Driver:
    """How a grid runs over prompts: in batches of ``size``, on which devices, kept where.

    model: placed on the mesh. The other fields are as in `jaxinterp.patching.patch`.
    """

    model: Model
    n_prompts: int
    size: int
    memory: int = MEMORY
    mesh: Mesh | None = None
    ledger: Ledger | None = None
    store: Parts | None = None
    on_done: Callable[[int], None] = ignore

    @classmethod
    def of(
        cls,
        model: Model,
        tokens: Tokens,
        identity: tuple[Any, ...],
        *,
        batch: int | None = None,
        memory: int = MEMORY,
        mesh: Mesh | None = None,
        parts: str | None = None,
        ledger: Ledger | None = None,
        on_done: Callable[[int], None] = ignore,
    ) -> Driver:
        """identity: what, beside the weights, tells this run from others (for ``parts``)."""
        size = batch_size(model, tokens, batch, memory)
        store = None
        if parts is not None:
            key = fingerprint(weights_digest(model), repr(model.config), *identity, size)
            store = Parts(parts, key)
        placed = model if mesh is None else place_model(checked(mesh), model)
        return cls(placed, len(tokens), size, memory, mesh, ledger, store, on_done)

    def batches(self, run: Callable[[np.ndarray], np.ndarray], each: int) -> np.ndarray:
        """``run(rows)`` [..., size] of all batches of prompts, side by side: [..., n_prompts].

        The last batch is filled up with its last prompt. each: experiments per prompt.
        """
        pieces = []
        for number, begin in enumerate(range(0, self.n_prompts, self.size)):
            piece = None if self.store is None else self.store.get(number)
            if piece is None:
                piece = run(np.arange(begin, begin + self.size).clip(max=self.n_prompts - 1))
                if self.store is not None:
                    self.store.put(number, piece)
            pieces.append(piece)
            self.on_done(each * min(self.size, self.n_prompts - begin))
        return np.concatenate(pieces, -1)[..., : self.n_prompts]

    def place(self, tokens: Tokens) -> Tokens:
        """A batch of prompts where the mesh wants it."""
        return tokens if self.mesh is None else place_tokens(checked(self.mesh), tokens)

    def sweep(self, tokens: Tokens, grid: Any, metric: Metric, base: Base | None) -> np.ndarray:
        """`jaxinterp.sweep` [E B] with this run's budget, devices and ledger."""
        return sweep(
            self.model, tokens, grid, metric, base=base, memory=self.memory, mesh=self.mesh,
            ledger=self.ledger,
        )  # fmt: skip


def batch_size(model: Model, tokens: Tokens, batch: int | None, memory: int) -> int:
    """Prompts per program: as asked for, or those whose base run fits ``memory`` bytes."""
    batch = whole_number("batch", batch, 1, optional=True)
    memory = whole_number("memory", memory, 1)
    c = model.config
    width = 2 * c.d_model + 2 * c.n_kv_heads * c.d_head
    fitting = int(max(1, min(BATCH, memory // (4 * c.n_layers * tokens.shape[1] * width))))
    return min(batch or fitting, len(tokens))


@functools.partial(jit, static=("sites",))
def recorded(model: Model, tokens: Tokens, sites: tuple[str, ...]) -> dict[str, jax.Array]:
    """The activations at some sites, as in `forward`; nothing is unembedded."""
    return forward(model, tokens, record=sites).activations


def site_and_layers(
    site: str, layers: Sequence[int] | None
) -> tuple[str, Sequence[int] | None]:  # fmt: skip
    """A site's own name; a TransformerLens hook name chooses its layer."""
    name, layer = parse(site)
    if layer is None:
        return name, layers
    if layers is not None and list(layers) != [layer]:
        raise ValueError(f"{site!r} names layer {layer}, layers={layers} others: give one.")
    return name, [layer]


def first_difference(clean: Tokens, corrupted: Tokens) -> np.ndarray:
    """The first position [B] at which two batches of prompts differ (their length if none)."""
    differ = np.asarray(clean.differ(corrupted)) & np.asarray(clean.mask)
    columns = np.where(differ.any(-1), differ.argmax(-1), clean.shape[1])
    return np.asarray(columns - np.asarray(clean.mask).argmax(-1))


def felt_cells(model: Model, cells: Cells, tokens: Tokens, first: np.ndarray) -> np.ndarray:
    """bool [E B]: whether a cell can change anything, as far as the tokens tell.

    first [B]: the first position at which what is put in can differ from what is there.
    """
    felt = np.repeat((first < np.asarray(tokens.lengths))[None], len(cells), axis=0)
    if model.config.causal and "position" in cells.where:
        # A causal run cannot differ from its donor before the first token that differs.
        felt &= cells.where["position"].reshape(len(cells), -1) >= first
    return felt


def open_axes(
    model: Model, site: str, where: Mapping[str, Any], tokens: Tokens, first: Any
) -> dict[str, Any]:
    """Masks for axes that the grid does not sweep, where a part of them is known not to matter."""
    if "position" in where or "position" not in SITES[site].axes or not model.config.causal:
        return {}
    if not np.min(first):
        return {}
    return {"position": Shared(np.arange(tokens.shape[1]) >= np.min(first))}


def spread(found: np.ndarray, felt: np.ndarray, base: np.ndarray) -> np.ndarray:
    """All cells [E B], from those [K B] that some prompt feels; the rest is as in the base [B]."""
    values = np.repeat(base[None], len(felt), axis=0)
    values[felt] = found[felt[felt.any(-1)]]
    return values


def check_pair(
    model: Model,
    clean: Tokens,
    corrupted: Tokens,
    names: tuple[str, str] = ("clean", "corrupted"),
) -> None:
    """Two batches of prompts must match one to one, token by token."""
    one, other = names
    for tokens in (clean, corrupted):
        check_tokens(model.config, tokens)
    if clean.shape[0] != corrupted.shape[0]:
        raise ValueError(
            f"There are {clean.shape[0]} {one} and {corrupted.shape[0]} {other} prompts: "
            f"give each {one} prompt its {other} twin."
        )
    a, b = np.asarray(clean.lengths), np.asarray(corrupted.lengths)
    if clean.shape != corrupted.shape or (a != b).any():
        bad = int(np.argmax(a != b)) if (a != b).any() else 0
        raise ValueError(
            f"Prompt {bad} has {a[bad]} tokens {one} and {b[bad]} {other}: patching needs "
            "twins of equal length, so that every position has a counterpart."
        )
    if (np.asarray(clean.positions) != np.asarray(corrupted.positions)).any():
        raise ValueError(
            f"{one.capitalize()} and {other} prompts are padded on different sides."
        )  # fmt: skip
    if (clean.types is None) != (corrupted.types is None):
        raise ValueError(f"Only one of {one} and {other} has token types: give both or neither.")


def check_direction(direction: str) -> None:
    """Refuse what is neither denoising nor noising."""
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction is {direction!r}, expected 'denoise' or 'noise'.")
