"""Calls of public functions that need more than keywords, and what numbers of a kind may not be."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from small_models import DIFF, OTHER, PROMPTS, small_model
from tiny_tokenizers import word_tokenizer

import jaxinterp as ji
from jaxinterp import sae

# What no number of a kind may be. A list stands for a sequence that holds it.
COUNT = (0, -1, 1.5, math.nan, math.inf, True, "3")  # 1, 2, 3, ...
MANY = (*COUNT, 10**12)  # the same, where the work grows with it
FROM_0 = (-1, 1.5, math.nan, True, "3")
FROM_0_MANY = (*FROM_0, 10**12)
SEED = (-1, 1.5, math.nan, True, "3", 2**40)
REAL = (math.nan, math.inf, True, "3")
POSITIVE = (0, -1, *REAL)
NOT_NEGATIVE = (-1, *REAL)
FRACTION = (-0.1, 1.1, *REAL)  # 0 and 1 may be
INSIDE = (0, 1, *FRACTION)  # they may not
INDEX = (-1, 99, 1.5, math.nan, "3")
INDICES = tuple([bad] for bad in INDEX)
FRACTIONS = tuple([bad] for bad in FRACTION)
NUMBERS = tuple([bad] for bad in REAL)
POSITIVES = tuple([bad] for bad in POSITIVE)
GRID = {"layers": INDICES, "heads": INDICES, "positions": INDICES, "neurons": (*COUNT[:4], [99])}
RUN = {"batch": COUNT, "memory": COUNT}

# What goes with an option, so that it is used.
WITH = {
    "heads": {"site": "z", "over": ("layer", "head")},
    "positions": {"site": "resid_pre", "over": ("layer", "position")},
    "neurons": {"site": "mlp_post", "over": ("layer", "neuron")},
}

M = small_model("llama")
ONE = {"model": M, "tokens": PROMPTS, "metric": DIFF}
TWINS = {"model": M, "clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}
MORE = {"model": M, "tokens": PROMPTS[[0, 1] * 6], "metric": ji.logit_diff([4, 9] * 6, [8, 2] * 6)}
PAIRS = {"model": M, "base": PROMPTS, "source": OTHER, "labels": [4, 9]}
BATCHES = {"model": M, "batches": [PROMPTS]}
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(30, 4)), np.arange(30) % 2


@functools.cache
def words():
    return word_tokenizer()


@functools.cache
def dictionary():
    config = sae.DictionaryConfig(8, 16, site="resid_post", layers=(1,))
    state = sae.start(config, sae.TrainingConfig(4), sae.Hyperparameters(sparsity=0.1, seed=0))
    return state.dictionary


@functools.cache
def circuit():
    return ji.circuits.Circuit.full(M)


@functools.cache
def scores():
    return np.ones(circuit().edges.shape)


def result():
    values = np.arange(6.0).reshape(3, 2)
    coords = {"layer": range(3), "clean": ("prompt", [1.0, 2.0]), "corrupted": ("prompt", [0.0, 0])}
    return xr.DataArray(values, coords, ("layer", "prompt"), "m", {"direction": "denoise"})


def reading():
    return xr.Dataset({"top_text": ("prompt", ["a", "b"])})


@functools.cache
def direction():
    return ji.Direction(np.arange(1.0, 9))


def store():
    return sae.Store(path=None, rows=4, paired=False, about={}, lines=({}, {}, {}))


def known():
    return ji.handbuilt.previous_token_induction()


def spelled(**options):
    return sae.Spelling.fit([" a", " b"], np.zeros((2, 3)), **options)


def direction_named(**options):
    given = {"directions": {"d": direction()}, "norms": np.ones(3), **options}
    return ji.steer(**{**ONE, "tokens": PROMPTS, **given})


def das(**options):
    return ji.interchange.train_das(**{**PAIRS, "layer": 1, "position": 2, **options})


def summed(a, b):
    return a + b


def sums(**options):
    f = ji.interchange.causal_model(output=summed)
    given = {
        "f": f, "sample": lambda rng: {"a": 1, "b": 2}, "variable": "output", "n": 2,
        "prompt": lambda each: [1, 2], "answer": int, **options,
    }  # fmt: skip
    return ji.interchange.interchange_task(**given)


def experiment(**options):
    return ji.Experiment("e", "effect", PROMPTS, ji.zero("z", layer=1, head=1), DIFF, **options)


def config(**options):
    return ji.Config(**{
        "n_layers": 1, "d_model": 4, "n_heads": 2, "d_head": 2, "d_mlp": 4, "vocab_size": 5,
        "n_ctx": 6, **options,
    })  # fmt: skip


def edges(function, **fixed):
    return lambda **options: function(**{**TWINS, **fixed, **options})


def of_circuit(function, **fixed):
    return lambda **options: function(circuit=circuit(), **{**TWINS, **fixed, **options})


def ran(**options):
    return ji.circuits.evaluate_circuits(**{**TWINS, "circuits": circuit(), **options})


def spread_over(function, *lazy, **fixed):
    """The function with values that are made when it is called."""
    return lambda **options: function(*(make() for make in lazy), **{**fixed, **options})


def on_features(function, **fixed):
    given = {"model": M, "tokens": PROMPTS, **fixed}
    return lambda **options: function(**{**given, "d": dictionary(), **options})


def on_dictionaries(function, **fixed):
    given = {"model": M, "tokens": PROMPTS, "metric": DIFF, **fixed}
    return lambda **options: function(**{**given, "dictionaries": [dictionary()], **options})


def world(function):
    return (lambda **options: function(**{"n": 2, **options})), {"n": MANY, "seed": SEED}


def task(function):
    return (lambda **options: function(words(), **options)), {"n": MANY, "seed": SEED}


def swept(function, **fixed):
    grid = ji.zero("z", layer=np.arange(2), head=1)
    return lambda **options: function(M, PROMPTS, grid, DIFF, **{**fixed, **options})


def densities(**options):
    return ji.superposition.train(
        jax.random.key(0), jnp.ones(1), jnp.ones((1, 2)), **{"n_hidden": 1, **options}
    )


def split(**options):
    half, x = np.arange(30) % 3 > 0, RNG.normal(size=(30, 8))
    return sae.split_features(dictionary(), x, LABELS, half, ~half, **options)


def absorbed(**options):
    return sae.absorption_rates(
        dictionary(), RNG.normal(size=(30, 8)), LABELS, np.eye(8)[:2], [[0], [1]], **options
    )


def das_options(rank=(0, 99, 1.5, True)):
    return {
        "rank": rank, "steps": MANY, "learning_rate": POSITIVE, "batch": COUNT, "memory": COUNT,
        "held_out": (1, *FRACTION), "penalty": NOT_NEGATIVE, "seed": SEED, "temperature": (
            (0, 1), (-1, 1), (math.nan, 1), (1, math.inf),
        ),
    }  # fmt: skip
