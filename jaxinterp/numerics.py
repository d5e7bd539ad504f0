"""Sums, means, norms and softmaxes are taken in float32 or wider, whatever the model's dtype.

A bfloat16 sum of 400 equal numbers stops growing at 256 of them, and a float16 one overflows at
65,504. Whatever a result depends on is therefore widened before it is reduced.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def wide_dtype(*values: Any) -> Any:
    """The dtype in which these arrays (or dtypes) are reduced: float32, or float64 if one is."""
    dtypes = [jnp.dtype(getattr(value, "dtype", value)) for value in values]
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def wide(x: Any) -> Any:
    """The array x [...] in float32 or wider; NumPy stays NumPy, and float64 stays float64.

    An ``xarray.DataArray`` keeps its labels.
    """
    if isinstance(x, jax.Array):
        return x.astype(wide_dtype(x))
    x = x if hasattr(x, "dims") else np.asarray(x)
    return x.astype(np.float64 if x.dtype.itemsize > 4 and x.dtype.kind in "fiu" else np.float32)
