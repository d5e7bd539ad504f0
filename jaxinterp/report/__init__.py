"""What people look at: heat maps, spreads, a table for the terminal, a page for the browser.

Every function takes the labelled result of a sweep (an ``xarray.DataArray`` with a
``prompt`` dim and the per-prompt baselines ``clean`` and ``corrupted``) and changes nothing.
"""

from jaxinterp.report.feature_graphs import draw_feature_circuit
from jaxinterp.report.features import write_features
from jaxinterp.report.fronts import front_curves
from jaxinterp.report.graphs import draw_circuit, scatter
from jaxinterp.report.html import write_report
from jaxinterp.report.plots import heatmap, spread
from jaxinterp.report.readings import (
    component_bars,
    lens_curves,
    lens_table,
    phase_map,
    probe_curves,
    projections,
    score_map,
    steering_curves,
)
from jaxinterp.report.tables import summarize, summary_table
from jaxinterp.report.views import View, attention_view, token_view

__all__ = [
    "View", "attention_view", "component_bars", "draw_circuit", "draw_feature_circuit",
    "front_curves", "heatmap", "lens_curves", "lens_table", "phase_map", "probe_curves",
    "projections", "scatter", "score_map", "spread", "steering_curves", "summarize",
    "summary_table", "token_view", "write_features", "write_report",
]  # fmt: skip
