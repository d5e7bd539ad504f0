"""The ground floor: what a transformer is, its parameters, sites and forward pass."""

from jaxinterp.model.block import block
from jaxinterp.model.config import Config, Rotary
from jaxinterp.model.forward import Output, embed, forward, run_layers, unembed
from jaxinterp.model.inputs import Tokens, as_tokens
from jaxinterp.model.layers import Context, Layer, Prefix, layer_at, layers_of, make_context
from jaxinterp.model.params import Model, Params, init, n_params, shapes
from jaxinterp.model.sites import SITES, Site
from jaxinterp.model.taps import At, Frame, Intervention

__all__ = [
    "SITES", "At", "Config", "Context", "Frame", "Intervention", "Layer", "Model", "Output",
    "Params", "Prefix", "Rotary", "Site", "Tokens", "as_tokens", "block", "embed", "forward",
    "init", "layer_at", "layers_of", "make_context", "n_params", "run_layers", "shapes",
    "unembed",
]  # fmt: skip
