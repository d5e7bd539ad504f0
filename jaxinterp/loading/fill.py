"""Filling the parameters from a checkpoint, one leaf and one tensor at a time.

Peak memory is the parameters, plus one leaf where the device wants its own copy, plus one
tensor.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxinterp.loading.families import Family, Rules
from jaxinterp.loading.sharding import shardings
from jaxinterp.loading.tensors import Tensors
from jaxinterp.loading.transforms import Transform
from jaxinterp.model import Config, Params, shapes
from jaxinterp.reading import LoadError

_ALIGNED = 64  # bytes: what a CPU device adopts without a copy


def fill(
    family: Family,
    config: Config,
    tensors: Tensors,
    dtype: Any,
    mesh: Any,
    rules: Rules | None = None,
) -> Params:
    """The parameters of ``config``, every leaf filled by the family's rules.

    Leaves are converted to ``dtype`` and placed on the default device, or over ``mesh``.
    Raises `LoadError` for a missing tensor, a wrong shape, a value that is not finite (in
    the file or only in ``dtype``), and for a tensor that nothing in the config explains.
    """
    rules = family.rules if rules is None else rules
    filling = _Filling(family, config, tensors, rules)
    tree = shapes(config, dtype)
    target = shardings(tree, mesh)

    def leaf(path: tuple[Any, ...], want: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        host = filling.leaf(".".join(key.name for key in path), want)
        # Without a mesh the array stays free to follow others to their devices.
        return jax.block_until_ready(jax.device_put(host, None if mesh is None else sharding))

    params = jax.tree_util.tree_map_with_path(leaf, tree, target)
    filling.check_leftovers()
    return params


class _Filling:
    """One checkpoint being read: remembers which of its tensors were used."""

    def __init__(self, family: Family, config: Config, tensors: Tensors, rules: Rules):
        self.family, self.config, self.tensors, self.rules = family, config, tensors, rules
        self.names = set(tensors.names())
        self.used: set[str] = set()

    def leaf(self, path: str, want: jax.ShapeDtypeStruct) -> np.ndarray:
        """One leaf in host memory, all its layers filled."""
        if path not in self.rules:
            raise LoadError(
                f"The {self.config.family} layout has no tensor for {path}, which this config "
                "needs: one of the options in config.json is not supported for the family."
            )
        source, transform = self.rules[path]
        host = _aligned(want.shape, want.dtype)
        if path.startswith("blocks."):
            for layer in range(self.config.n_layers):
                self._place(source.format(layer), transform, host[layer])
        else:
            self._place(source, transform, host)
        return host

    def _place(self, name: str, transform: Transform, out: np.ndarray) -> None:
        spellings = self.family.spellings(name)
        found = next((given for given in spellings if given in self.names), None)
        if found is None:
            raise LoadError(
                f"{self.tensors.label} lacks the tensor {name!r} of a {self.config.family} "
                "model: download the file again, or check config.json against it."
            )
        self.used.add(found)
        x = self.tensors.read(found)
        try:
            y = transform(x, self.config)
        except ValueError:
            y = None
        if y is None or y.shape != out.shape:
            raise LoadError(
                f"Tensor {found!r} of {self.tensors.label} has shape {list(x.shape)}, which "
                f"does not give {list(out.shape)} as config.json says: the two files do not "
                "belong together."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = y
        if out.size and not _finite(out):
            if not _finite(y):
                raise LoadError(
                    f"Tensor {found!r} of {self.tensors.label} holds NaN or infinite values: "
                    "the checkpoint is broken, take another."
                )
            raise LoadError(
                f"Tensor {found!r} of {self.tensors.label} holds values beyond {out.dtype}: "
                "load with dtype=jnp.float32."
            )

    def check_leftovers(self) -> None:
        """Every tensor of the checkpoint was used, or is known to be of no use."""
        unused = set()
        for path, (source, _) in self.rules.items():  # the unembedding of a tied model
            if path == "head.W_U" and self.config.head != "untied":
                unused.update(self.family.spellings(source))
        left = sorted(n for n in self.names - self.used - unused if not self.family.ignores(n))
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise LoadError(
                f"{self.tensors.label} holds {left[0]!r}{others}, "
                f"which a {self.config.family} model of this config has no place for: check "
                "config.json against the weights."
            )


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised memory that a CPU device can adopt."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _finite(x: np.ndarray) -> bool:
    """All values finite, without a temporary of x's size."""
    return bool(np.isfinite(np.float64(x.min())) and np.isfinite(np.float64(x.max())))
