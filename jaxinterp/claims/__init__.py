"""Claims: what is said about a mechanism, with the causal tests that bear it out.

A claim is a value. It cannot be stated without an effect that was measured, something beside it
(controls, or what should be left alone) and limits; and it is run again from its JSON alone.
"""

from jaxinterp.claims.claim import Claim
from jaxinterp.claims.controls import random_components
from jaxinterp.claims.experiment import Experiment, Found
from jaxinterp.claims.needs import Needs
from jaxinterp.claims.words import in_words

__all__ = ["Claim", "Experiment", "Found", "Needs", "in_words", "random_components"]
