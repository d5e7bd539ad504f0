"""The engine: a grid of interventions as a few compiled programs."""

from jaxinterp.sweep.ahead import plan
from jaxinterp.sweep.base import Base, observe
from jaxinterp.sweep.ledger import Cost, Ledger
from jaxinterp.sweep.run import sweep, sweep_plain
from jaxinterp.sweep.schedule import Plan

__all__ = ["Base", "Cost", "Ledger", "Plan", "observe", "plan", "sweep", "sweep_plain"]
