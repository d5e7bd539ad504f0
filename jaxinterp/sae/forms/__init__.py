"""Other libraries' files of dictionaries: what they name things, and what their numbers mean.

Each form is a pair of functions on a folder, with a list of what each key of its config means
(`keys`). Features mean what they mean there: scales that a library has folded into its weights stay
folded, scales of its decoder's rows are folded while reading, and those of activations are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.forms.circuit_tracer import read_circuit_tracer, write_circuit_tracer
from jaxinterp.sae.forms.dictionary_learning import (
    read_dictionary_learning,
    write_dictionary_learning,
)
from jaxinterp.sae.forms.gemma_scope import (
    read_gemma_scope,
    read_gemma_scope_2,
    write_gemma_scope,
    write_gemma_scope_2,
)
from jaxinterp.sae.forms.saelens import read_saelens, write_saelens
from jaxinterp.sae.forms.sparsify import read_sparsify, write_sparsify


class Form(NamedTuple):
    """file: by which a folder is recognised."""

    file: str
    read: Callable[[Path], Dictionary]
    write: Callable[[Path, Dictionary], None]


FORMS = {
    "saelens": Form("sae_weights.safetensors", read_saelens, write_saelens),
    "gemma-scope": Form("params.npz", read_gemma_scope, write_gemma_scope),
    "gemma-scope-2": Form("params.safetensors", read_gemma_scope_2, write_gemma_scope_2),
    "dictionary-learning": Form("ae.pt", read_dictionary_learning, write_dictionary_learning),
    "sparsify": Form("sae.safetensors", read_sparsify, write_sparsify),
    "circuit-tracer": Form("layer_*.safetensors", read_circuit_tracer, write_circuit_tracer),
}
