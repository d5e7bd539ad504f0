"""Metrics: from logits where they are needed to one number per prompt.

A metric is a pytree whose arrays all have a leading prompt axis (of length 1 where all
prompts share a value), so that prompts can be chunked and sharded. It says which positions
it reads and, where a few tokens' logits suffice, which: the unembedding runs for those alone.
"""

from jaxinterp.metrics.base import (
    Metric,
    check_metric,
    evaluate,
    normalized,
    of_prompts,
    read_columns,
    read_out,
)
from jaxinterp.metrics.kinds import (
    accuracy,
    cross_entropy,
    kl,
    log_prob,
    logit,
    logit_diff,
    metric,
    prob,
    prob_diff,
    rank,
)  # fmt: skip

__all__ = [
    "Metric", "accuracy", "check_metric", "cross_entropy", "evaluate", "kl", "log_prob", "logit",
    "logit_diff", "metric", "normalized", "of_prompts", "prob", "prob_diff", "rank",
    "read_columns", "read_out",
]  # fmt: skip
