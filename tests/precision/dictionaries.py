"""Cases of dictionaries, interchange, algorithmic tasks, corpora and training."""

from cases import no_numbers

no_numbers("it returns texts", "corpora.open_texts", "corpora.read_lines")
