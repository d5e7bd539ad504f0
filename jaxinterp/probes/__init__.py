"""Probes: what can be read from activations with a linear map. Decodable is not used."""

from jaxinterp.probes.fit import Probes, fit_means, fit_ridge
from jaxinterp.probes.logistic import fit_logistic
from jaxinterp.probes.probe import PENALTIES, probe, text_baselines
from jaxinterp.probes.sparse import sparse_probe
from jaxinterp.probes.splits import Splits, make_splits

__all__ = [
    "PENALTIES", "Probes", "Splits", "fit_logistic", "fit_means", "fit_ridge", "make_splits",
    "probe", "sparse_probe", "text_baselines",
]  # fmt: skip
