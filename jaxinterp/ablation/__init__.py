"""Ablation: take something out, and say what stood in its place.

`ablate` sweeps a grid, `ablation_grid` tries every choice behind one number, `mean_activations`
and `optimal_constants` make what is put in.
"""

from jaxinterp.ablation.choices import ablation_grid
from jaxinterp.ablation.means import mean_activations
from jaxinterp.ablation.optimal import optimal_constants
from jaxinterp.ablation.sweep import ablate

__all__ = ["ablate", "ablation_grid", "mean_activations", "optimal_constants"]
