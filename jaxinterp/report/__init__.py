"""What people look at: heat maps, spreads, a table for the terminal, a page for the browser.

Every function takes the labelled result of a sweep (an ``xarray.DataArray`` with a
``prompt`` dim and the per-prompt baselines ``clean`` and ``corrupted``) and changes nothing.
"""

from jaxinterp.report.graphs import draw_circuit, scatter
from jaxinterp.report.html import write_report
from jaxinterp.report.plots import heatmap, spread
from jaxinterp.report.readings import (
    component_bars,
    lens_curves,
    lens_table,
    phase_map,
    probe_curves,
    score_map,
    steering_curves,
)
from jaxinterp.report.tables import summarize, summary_table

__all__ = [
    "component_bars", "draw_circuit", "heatmap", "lens_curves", "lens_table", "phase_map",
    "probe_curves", "scatter", "score_map", "spread", "steering_curves", "summarize",
    "summary_table", "write_report",
]  # fmt: skip
