"""Cases of what reads a model: lenses, probes, heads, neurons, directions."""

from cases import no_numbers

no_numbers("it draws a picture", "report.lens_curves", "report.lens_table", "report.probe_curves")
