"""Lenses: what the residual stream would say if the model stopped there."""

from jaxinterp.lens.files import load, save
from jaxinterp.lens.jacobian import fit_jacobian
from jaxinterp.lens.kinds import JacobianLens, Lens, LogitLens, TunedLens
from jaxinterp.lens.patchscope import patchscope
from jaxinterp.lens.read import read
from jaxinterp.lens.tuned import published_optimizer, start_tuned, train_tuned

__all__ = [
    "JacobianLens", "Lens", "LogitLens", "TunedLens", "fit_jacobian", "load",
    "patchscope", "published_optimizer", "read", "save", "start_tuned", "train_tuned",
]  # fmt: skip
