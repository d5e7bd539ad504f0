"""Cases of interchange, algorithmic tasks, streams and training."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import EXACT, FORWARD, GRADIENT, case, no_numbers
from small_models import CORRECT, OTHER, PROMPTS, WRONG
from two_codes import MODEL as TWO_CODES
from two_codes import PLANES, task_of

import jaxinterp as ji
from jaxinterp import interchange, training
from jaxinterp.algorithmic import addition, boards
from jaxinterp.model import as_tokens

DIFF = ji.logit_diff(CORRECT, WRONG)
AGAINST = np.concatenate([OTHER, PROMPTS])
SMALL = {"bfloat16": 0.12, "float16": 0.02}  # numbers that are differences of larger ones
FOLDER = tempfile.TemporaryDirectory()


# Interchange --------------------------------------------------------------------------------------


@case("interchange.interchange_accuracy", "interchange.replace_component", within=SMALL, long=True)
def interchanges(given):
    model, basis = given.model(), interchange.random_basis(8, 3)
    options = {"base": PROMPTS, "source": OTHER, "layer": 1, "position": 4}
    task, planes = task_of("left", n=24), PLANES["left"].astype(np.float32)
    values = ji.forward(model, OTHER, record=("resid_post",)).activations["resid_post"]
    edit = interchange.replace_component(
        "resid_post", values, interchange.orthonormal(given.cast(basis))
    )
    return {
        "metric": interchange.interchange_accuracy(model, metric=DIFF, basis=basis, **options),
        "accuracy": interchange.interchange_accuracy(
            given.cast(TWO_CODES), site="resid_post", layer=0, position=2, basis=planes,
            **task.arguments,
        ),
        "edit": ji.evaluate(ji.logit(4), model, PROMPTS, edit),
    }  # fmt: skip


@case(
    "interchange.train_das", "interchange.Alignment.accuracy", "interchange.Alignment.interchange",
    "interchange.Alignment.rank", within=GRADIENT, long=True,
)  # fmt: skip
def alignments(given):
    model = given.model()
    found = interchange.train_das(
        model, base=AGAINST, source=AGAINST[::-1], metric=ji.logit_diff(3, 4), layer=1, position=4,
        steps=5, rank=2, held_out=0.25,
    )  # fmt: skip
    edit = found.interchange(model, OTHER)
    return {
        "losses": found.losses, "accuracy": found.accuracy, "rank": found.rank,
        "value": ji.evaluate(ji.logit(4), model, PROMPTS, edit),
    }  # fmt: skip


@case("interchange.sweep_das", within=GRADIENT, long=True)
def searches(given):
    found = interchange.sweep_das(
        given.model(), base=AGAINST, source=AGAINST[::-1], metric=ji.logit_diff(3, 4),
        layers=[0, 2], positions=[3], steps=4,
    )  # fmt: skip
    return found.accuracy


@case("interchange.orthonormal", "interchange.principal_angles", within=EXACT)
def subspaces(given):
    a, b = given.normal(64, 4, scale=300), given.normal(64, 3, scale=300, seed=1)
    return {
        "basis": interchange.orthonormal(a), "angles": interchange.principal_angles(a, b),
    }  # fmt: skip


no_numbers("it checks a basis", "interchange.Interchange.check")
no_numbers("it is drawn from a seed, in float32", "interchange.random_basis")
no_numbers(
    "it is about prompts and causal models in Python", "interchange.InterchangeTask.arguments",
    "interchange.InterchangeTask.changed", "interchange.InterchangeTask.record",
    "interchange.causal_model", "interchange.counterfactual", "interchange.interchange_task",
)  # fmt: skip


# Algorithmic tasks, corpora -----------------------------------------------------------------------


@case("algorithmic.addition.power", within=EXACT)
def powers_of_frequencies(given):
    return addition.power(given.normal(113, 40, scale=300))


@case(
    "algorithmic.boards.all_above", "algorithmic.boards.all_legal",
    "algorithmic.boards.missed_moves", "algorithmic.boards.told_apart",
    "algorithmic.boards.legal_sets", "algorithmic.boards.wrong_moves",
    "algorithmic.boards.Probes.read", within=EXACT,
)  # fmt: skip
def moves_and_boards(given):
    rng, logits = np.random.default_rng(0), given.normal(40, 1, 36, scale=30)
    order = np.argsort(-np.asarray(logits, np.float32)[:, 0], axis=-1)
    legal = np.zeros((40, 36), bool)
    np.put_along_axis(legal, order[:, :5], True, axis=1)  # the five likeliest moves
    legal[::3] = rng.random((14, 36)) < 0.3
    tokens = as_tokens(np.zeros((40, 1), int))
    made = [boards.legal_sets(legal), boards.told_apart(legal, ~legal), boards.wrong_moves(legal)]
    probes = boards.Probes(
        rng.normal(size=(1, 36, 64, 3)).astype(np.float32), np.zeros((1, 36, 3), np.float32)
    )
    return {
        "metrics": [one(logits, tokens) for one in made],
        "functions": [
            boards.all_legal(logits, legal), boards.all_above(logits, legal, ~legal),
            boards.missed_moves(logits, legal, legal),
        ],
        "read": np.bincount(probes.read(given.normal(50, 64, scale=300), 0).reshape(-1)) > 0,
    }  # fmt: skip


no_numbers(
    "it is drawn from a seed or told from token ids, of no model and no activations",
    *(f"algorithmic.addition.{name}" for name in (
        "every", "fourier_basis", "prompts", "split", "sums", "task", "tokenizer",
    )),
    *(f"algorithmic.boards.{name}" for name in (
        "Game.legal_squares", "Game.moves", "Game.random_games", "Game.random_positions",
        "Game.replay", "Game.telling_squares", "Game.tokenizer", "Positions.__getitem__", "drawn",
        "turned_over",
    )),
    *(f"algorithmic.brackets.{name}" for name in (
        "heights", "is_balanced", "strings", "task", "tokenizer",
    )),
    *(f"algorithmic.repeats.{name}" for name in (
        "background", "favoured", "said_twice", "sequences", "task", "tokenizer",
    )),
    *(f"algorithmic.retrieval.{name}" for name in ("prompts", "task", "tokenizer")),
    *(f"algorithmic.shapes.{name}" for name in (
        "Images.tokens", "drawn", "images", "patches", "task",
    )),
)  # fmt: skip
no_numbers("it reads a shipped model's file, bit for bit", "algorithmic.boards.probes")
no_numbers("it is text, or ids of it", "corpora.open_texts", "corpora.packed", "corpora.read_lines")


# The toy model of superposition, streams, training ------------------------------------------------


@case(
    "superposition.Toy.__call__", "superposition.Toy.dimensions", "superposition.Toy.interference",
    "superposition.Toy.norms", within=EXACT,
)  # fmt: skip
def toys(given):
    toy = ji.superposition.Toy(given.normal(2, 5, 20, scale=300), given.normal(2, 20, seed=1))
    x = given.normal(2, 50, 20, scale=30)
    return [toy(x), toy.dimensions, toy.interference, toy.norms]


@case("superposition.train", "superposition.phase_diagram", within=EXACT)
def trained_toys(given):
    toy, loss = ji.superposition.train(
        jax.random.key(0), given.cast(np.array([0.5, 0.25])), given.cast(np.ones((2, 3))),
        n_hidden=2, steps=20, batch=64,
    )  # fmt: skip
    phases = ji.superposition.phase_diagram(
        given.cast(np.array([0.5])), given.cast(np.array([0.5, 2.0])), steps=20, batch=64, seeds=2
    )
    return {"W": toy.W, "loss": loss, "phases": phases}


@case("patch_stream", long=True)
def streamed(given):
    batches = [
        {"clean": clean, "corrupted": clean[::-1], "metric": DIFF} for clean in (PROMPTS, OTHER)
    ]
    path = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "stream"
    found = ji.patch_stream(
        given.model(), batches, path, site="z", over=("layer", "head"), on_done=lambda n: None
    )
    return found.load()


def loss(model, tokens):
    logits = ji.forward(model, tokens).logits[:, :-1].astype(jnp.float32)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens.ids[:, 1:])
    return each.mean(), {}


@case("training.train", own=True, long=True, within={**FORWARD, "float16": 0.02})
def training_of_models(given):
    """Steps so small that each is lost in the rounding of a half-precision parameter."""
    start = given.model()
    made = training.train(
        start, lambda step: as_tokens(PROMPTS), loss, optax.adam(2e-4), steps=300, log_every=299
    )
    moved = jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64),
        made.model.params.head.W_U, start.params.head.W_U,
    )  # fmt: skip
    return {"loss": made.history.loss, "moved": np.abs(moved).mean()}
