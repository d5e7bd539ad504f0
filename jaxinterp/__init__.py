"""jaxinterp: every causal experiment on a transformer is one compiled program.

>>> import jaxinterp as ji
>>> model, tokenizer = ji.load("smollm2-135m-instruct")            # doctest: +SKIP
>>> out = ji.forward(model, tokenizer("Hello"), record=("z",))      # doctest: +SKIP
"""

from jaxinterp import (
    ablation,
    attribution,
    circuits,
    comparison,
    handbuilt,
    interchange,
    metrics,
    nnx,
    pairs,
    results,
    scrubbing,
    stats,
    tasks,
    tracing,
)
from jaxinterp.ablation import ablate, mean_activations
from jaxinterp.attribution import attribute
from jaxinterp.comparison import compare
from jaxinterp.generation import Generated, generate
from jaxinterp.interventions import (
    Edit,
    Shared,
    Where,
    add,
    product,
    project_out,
    replace,
    scale,
    zero,
)  # fmt: skip
from jaxinterp.loading import LoadError, fetch, load, models, save
from jaxinterp.metrics import (
    Metric,
    accuracy,
    cross_entropy,
    evaluate,
    kl,
    log_prob,
    logit,
    logit_diff,
    metric,
    normalized,
    prob,
    prob_diff,
    rank,
)  # fmt: skip
from jaxinterp.model import (
    SITES,
    At,
    Config,
    Frame,
    Intervention,
    Model,
    Output,
    Rotary,
    Site,
    Tokens,
    embed,
    forward,
    init,
    run_layers,
    shapes,
    unembed,
)  # fmt: skip
from jaxinterp.model.transforms import (
    center_unembed,
    center_writing_weights,
    fold_norm,
    fold_value_biases,
)  # fmt: skip
from jaxinterp.pairs import patch_pairs
from jaxinterp.patching import patch
from jaxinterp.results import share
from jaxinterp.scrubbing import scrub
from jaxinterp.streaming import batches_of, patch_stream
from jaxinterp.sweep import Ledger, Plan, observe, plan, sweep, sweep_plain
from jaxinterp.tasks import Task
from jaxinterp.tokens import Tokenizer
from jaxinterp.tracing import trace_causes
from jaxinterp.version import __version__

__all__ = [
    "SITES",
    "At",
    "Config",
    "Edit",
    "Frame",
    "Generated",
    "Intervention",
    "Ledger",
    "LoadError",
    "Metric",
    "Model",
    "Output",
    "Plan",
    "Rotary",
    "Shared",
    "Site",
    "Task",
    "Tokenizer",
    "Tokens",
    "Where",
    "__version__",
    "ablate",
    "ablation",
    "accuracy",
    "add",
    "attribute",
    "attribution",
    "batches_of",
    "center_unembed",
    "center_writing_weights",
    "circuits",
    "compare",
    "comparison",
    "cross_entropy",
    "embed",
    "evaluate",
    "fetch",
    "fold_norm",
    "fold_value_biases",
    "forward",
    "generate",
    "handbuilt",
    "init",
    "interchange",
    "kl",
    "load",
    "log_prob",
    "logit",
    "logit_diff",
    "mean_activations",
    "metric",
    "metrics",
    "models",
    "nnx",
    "normalized",
    "observe",
    "pairs",
    "patch",
    "patch_pairs",
    "patch_stream",
    "plan",
    "prob",
    "prob_diff",
    "product",
    "project_out",
    "rank",
    "replace",
    "results",
    "run_layers",
    "save",
    "scale",
    "scrub",
    "scrubbing",
    "shapes",
    "share",
    "stats",
    "sweep",
    "sweep_plain",
    "tasks",
    "trace_causes",
    "tracing",
    "unembed",
    "zero",
]
