"""The engine: a grid of interventions as a few compiled programs."""

from jaxinterp.sweep.run import Base, observe, sweep, sweep_plain

__all__ = ["Base", "observe", "sweep", "sweep_plain"]
