"""A long run for `test_streaming.py` to kill: streams a tiny model's batches into a store.

    python streaming_worker.py OUT

Prints how many batches are finished, one line for each.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np

jax.config.update("jax_disable_most_optimizations", True)

from small_models import small_model  # noqa: E402

from jaxinterp.metrics import logit_diff  # noqa: E402
from jaxinterp.streaming import patch_stream  # noqa: E402

N, SIZE, LENGTH = 62, 2, 5


def stream(n=N, size=SIZE, seed=0, length=LENGTH):
    """n random prompts in batches; every twin differs at its second token."""
    rng = np.random.default_rng(seed)
    clean, corrupted = (rng.integers(0, 17, (n, length)) for _ in range(2))
    corrupted[:, 0] = clean[:, 0]
    corrupted[:, 1] = (clean[:, 1] + 1) % 17
    answers = rng.integers(0, 17, (2, n))
    for begin in range(0, n, size):
        rows = slice(begin, begin + size)
        metric = logit_diff(*answers[:, rows])
        yield {"clean": clean[rows], "corrupted": corrupted[rows], "metric": metric}


def main(out: str) -> None:
    done = []

    def tell(experiments):
        done.append(experiments)
        print(len(done), flush=True)

    patch_stream(small_model("llama"), stream(), out, on_done=tell, record={"seed": 0})


if __name__ == "__main__":
    main(sys.argv[1])
