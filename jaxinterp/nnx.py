"""The Flax door: our model as a Flax NNX module, so that any Flax/optax loop can train it.

>>> module = ji.nnx.Transformer(model)                              # doctest: +SKIP
>>> optimizer = nnx.Optimizer(module, optax.adamw(1e-3), wrt=nnx.Param)   # doctest: +SKIP
>>> ... train as usual ...                                          # doctest: +SKIP
>>> model = module.model()                                          # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxinterp.model import Model, Output, forward


class Transformer(nnx.Module):
    """A `Model` as a Flax NNX module whose state is exactly its parameters.

    ``module.params`` is our parameter tree with an ``nnx.Param`` at every leaf.
    """

    def __init__(self, model: Model):
        self.config, self.name, self.revision = model.config, model.name, model.revision
        self.params = nnx.data(jax.tree.map(nnx.Param, model.params))

    def model(self) -> Model:
        """The model with the module's present parameters (no copy)."""
        params = jax.tree.map(
            lambda p: p[...], self.params, is_leaf=lambda p: isinstance(p, nnx.Variable)
        )
        return Model(params, self.config, self.name, self.revision)

    def __call__(self, tokens: Any, interventions: Any = (), record: Any = ()) -> Output:
        """As `jaxinterp.forward`."""
        return forward(self.model(), tokens, interventions, record)
