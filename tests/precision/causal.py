"""Cases of what acts on a model: the forward pass, metrics, sweeps, ablation, circuits."""

import numpy as np
from cases import EXACT, case
from small_models import CORRECT, OTHER, PROMPTS, WRONG

import jaxinterp as ji

COPIES = 400  # of a prompt: a bfloat16 sum of equal numbers stops growing at 256 of them


def copies(n=COPIES):
    """n copies of one prompt."""
    return np.tile(PROMPTS[:1], (n, 1))


@case("forward", own=True)
def forward(given):
    out = ji.forward(given.model(), PROMPTS, record=("resid_post", "z", "pattern", "mlp_post"))
    return {"logits": out.logits, **out.activations}


@case("logit_diff", "logit", "log_prob", "prob", "prob_diff", "rank", "accuracy", within=EXACT)
def metrics_of_answers(given):
    logits = given.normal(2, 1, 1000, scale=3)
    tokens = ji.Tokens(PROMPTS, np.tile(np.arange(7), (2, 1)))
    pair, one = (CORRECT, WRONG), (CORRECT,)
    made = [ji.logit_diff(*pair), ji.prob_diff(*pair), ji.logit(*one), ji.log_prob(*one)]
    made += [ji.prob(*one), ji.rank(*one), ji.accuracy(*one)]
    return {metric.name: metric(logits, tokens) for metric in made}


@case("mean_activations")
def mean_of_copies(given):
    return ji.mean_activations(given.model(), [copies()], ["z", "resid_post"], second=True)


@case("ablate", long=True)
def ablate_with_means(given):
    return {
        value: ji.ablate(
            given.model(), tokens=PROMPTS, donors=np.concatenate([copies(), OTHER]),
            metric=ji.logit_diff(CORRECT, WRONG), value=value,
        )
        for value in ("mean", "zero")
    }  # fmt: skip
