"""Generation: new tokens with a cache, interventions applied on the way."""

from jaxinterp.generation.run import Apply, Generated, generate

__all__ = ["Apply", "Generated", "generate"]
