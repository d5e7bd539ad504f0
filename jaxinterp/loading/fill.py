"""Filling the parameters from a checkpoint, one leaf and one tensor at a time.

Peak memory is the parameters, plus one leaf where the device wants its own copy, plus one
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxinterp.loading.families import Family, Rules
from jaxinterp.loading.names import Names
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
    stand_ins: Mapping[str, str] | None = None,
) -> Params:
    """The parameters of ``config``, every leaf filled by the family's rules.

    Leaves are converted to ``dtype`` and placed on the default device, or over ``mesh``.
    stand_ins: the tensors that are read in place of missing ones, by these (see `untie`).

    Raises `LoadError` for a missing tensor, a wrong shape, a value that is not finite (in the
    file or only in ``dtype``), a tensor that nothing in the config explains, and two tensors for
    one parameter.
    """
    rules = family.rules if rules is None else rules
    filling = _Filling(family, config, tensors, rules, stand_ins or {})
    tree = shapes(config, dtype)
    target = shardings(tree, mesh)

    def leaf(path: tuple[Any, ...], want: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        host = filling.leaf(".".join(key.name for key in path), want)
        # Without a mesh the array stays free to follow others to their devices.
        return jax.block_until_ready(jax.device_put(host, None if mesh is None else sharding))

    params = jax.tree_util.tree_map_with_path(leaf, tree, target)
    filling.check_leftovers()
    return params


def untie(family: Family, config: Config, tensors: Tensors) -> tuple[Config, dict[str, str]]:
    """The config as the file's own unembedding decides, and what stands in for missing tensors.

    As in the reference, a tied model whose file holds both an embedding and another unembedding
    is not tied after all; where it holds one of the two, that one is both. An unembedding of its
    own that is missing is left to `fill` to refuse: the reference would draw it at random.
    """
    names, stand_ins = Names(family, tensors.names(), tensors.label), dict[str, str]()
    if config.head != "tied":
        return config, stand_ins
    for target, source in family.ties:
        here, there = names.find(target), names.find(source)
        if here is None and there is not None:
            stand_ins[target] = source
        elif there is None and here is not None:
            stand_ins[source] = target
        elif here is None or there is None or target != family.rules["head.W_U"][0]:
            continue
        elif not np.array_equal(tensors.read(here), tensors.read(there)):
            config = config.replace(head="untied")
    return config, stand_ins


class _Filling:
    """One checkpoint being read: remembers which of its tensors were used."""

    def __init__(
        self,
        family: Family,
        config: Config,
        tensors: Tensors,
        rules: Rules,
        stand_ins: Mapping[str, str],
    ):
        self.config, self.tensors, self.rules = config, tensors, rules
        self.stand_ins = stand_ins
        self.names = Names(family, tensors.names(), tensors.label)
        if config.head == "tied" and "head.W_U" in rules:  # equal to the embedding, if it is there
            self.names.use(rules["head.W_U"][0])

    def leaf(self, path: str, want: jax.ShapeDtypeStruct) -> np.ndarray:
        """One leaf in host memory, all its layers filled."""
        if path not in self.rules:
            raise LoadError(
                f"The {self.config.family} layout has no tensor for {path}, which this config "
                "needs: one of the options in config.json is not supported for the family."
            )
        source, transform = self.rules[path]
        if path.startswith("blocks."):
            parts = [(source.format(layer), want.shape[1:]) for layer in range(want.shape[0])]
        else:
            parts = [(source, want.shape)]
        for name, shape in parts:
            self._check_size(name, shape)
        host = _aligned(want.shape, want.dtype)
        outs = host if path.startswith("blocks.") else [host]
        for (name, _), out in zip(parts, outs, strict=True):
            self._place(name, transform, out)
        return host

    def _check_size(self, name: str, shape: tuple[int, ...]) -> None:
        """No memory is taken for more numbers than the file holds: transforms only take parts."""
        found = self.names.find(self.stand_ins.get(name, name))
        if found is None:
            raise LoadError(
                f"{self.tensors.label} lacks the tensor {name!r} of a {self.config.family} "
                "model: download the file again, or check config.json against it."
            )
        if math.prod(self.tensors.shape(found)) < math.prod(shape):
            raise self._other_shape(found, self.tensors.shape(found), shape)

    def _other_shape(self, found: str, there: tuple[int, ...], shape: tuple[int, ...]) -> LoadError:
        return LoadError(
            f"Tensor {found!r} of {self.tensors.label} has shape {list(there)}, which does not "
            f"give {list(shape)} as config.json says: the two files do not belong together."
        )

    def _place(self, name: str, transform: Transform, out: np.ndarray) -> None:
        found = self.names.use(self.stand_ins.get(name, name))
        assert found is not None  # `_check_size` has seen it
        x = self.tensors.read(found)
        try:
            y = transform(x, self.config)
        except ValueError:
            y = None
        if y is None or y.shape != out.shape:
            raise self._other_shape(found, x.shape, out.shape)
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
        left = self.names.left()
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
