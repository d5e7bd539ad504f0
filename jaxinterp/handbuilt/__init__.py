"""Transformers whose circuit is known by construction.

Each builder writes the weights of a small algorithm and returns a `Known`: the model, its
task, and which edges are true, under resampling and under zero ablation separately. What a
discovery method reports can be held against that. The constructions follow the idea of RASP
(Weiss et al. 2021, arXiv:2106.06981) and Tracr (Lindner et al. 2023, arXiv:2301.05062): every
variable has its own coordinates of the residual stream, and attention is sharp.

In each model other components are at work too: look-alikes with the pattern of a true head,
heads and MLPs that write real, prompt-dependent values where nobody that matters reads.

>>> known = previous_token_induction()
>>> pairs = known.make(n=8, length=12, seed=0)
>>> metric = known.metric(pairs.answers, pairs.wrong)
>>> sorted(known.edges["resample"])[:2]
['a0.h0->a1.h0<k>', 'a1.h0->logits']
"""

from collections.abc import Callable

from jaxinterp.handbuilt.backup import backup_head
from jaxinterp.handbuilt.duplicates import duplicate_detection
from jaxinterp.handbuilt.fraction import token_fraction
from jaxinterp.handbuilt.induction import previous_token_induction
from jaxinterp.handbuilt.known import Alphabet, Known, Pairs
from jaxinterp.handbuilt.reversing import reversal

MODELS: dict[str, Callable[[], Known]] = {
    "previous_token_induction": previous_token_induction,
    "token_fraction": token_fraction,
    "reversal": reversal,
    "duplicate_detection": duplicate_detection,
    "backup_head": backup_head,
}

__all__ = [
    "MODELS", "Alphabet", "Known", "Pairs", "backup_head", "duplicate_detection",
    "previous_token_induction", "reversal", "token_fraction",
]  # fmt: skip
