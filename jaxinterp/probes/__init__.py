"""Probes: what can be read from activations with a linear map. Decodable is not used."""

from jaxinterp.probes.fit import Probes, fit_logistic, fit_means, fit_ridge

__all__ = ["Probes", "fit_logistic", "fit_means", "fit_ridge"]
