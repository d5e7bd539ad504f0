"""Interchange interventions on subspaces, and the search for the subspace of a variable."""

from jaxinterp.interchange.accuracy import interchange_accuracy
from jaxinterp.interchange.causal import (
    CausalModel,
    InterchangeTask,
    causal_model,
    counterfactual,
    interchange_task,
)
from jaxinterp.interchange.grid import Searched, sweep_das
from jaxinterp.interchange.search import Alignment, train_das
from jaxinterp.interchange.subspace import (
    Interchange,
    orthonormal,
    principal_angles,
    random_basis,
    replace_component,
)

__all__ = [
    "Alignment", "CausalModel", "Interchange", "InterchangeTask", "Searched", "causal_model",
    "counterfactual", "interchange_accuracy", "interchange_task", "orthonormal",
    "principal_angles", "random_basis", "replace_component", "sweep_das", "train_das",
]  # fmt: skip
