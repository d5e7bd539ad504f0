"""Attribution: what every patch would do, predicted from a few passes instead of one each.

All methods predict what `jaxinterp.patch` measures, cell for cell, and are labelled alike, so
that `jaxinterp.compare` can say how far the prediction is to be trusted.
"""

from jaxinterp.attribution.run import METHODS, attribute, interactions

__all__ = ["METHODS", "attribute", "interactions"]
