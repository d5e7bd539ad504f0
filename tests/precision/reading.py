"""Cases of what reads a model: lenses, probes, heads, neurons, directions."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from cases import EXACT, GRADIENT, case, no_numbers
from small_models import CONFIGS, CORRECT, OTHER, PROMPTS, WRONG, perturbed

import jaxinterp as ji
from jaxinterp import directions, erasure, heads, lens, neurons, probes, steering
from jaxinterp.factored import FactoredMatrix
from jaxinterp.model import as_tokens

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 17, (40, 7))
LABELS = IDS[:, -1] > 8
ROUNDED = {"bfloat16": 0.006, "float16": 0.001}  # of values that are kept in the model's dtype
SMALL = {"bfloat16": 0.12, "float16": 0.02}  # numbers that are differences of larger ones
FOLDER = tempfile.TemporaryDirectory()


def copies(n=400):
    """n copies of one prompt."""
    return np.tile(PROMPTS[:1], (n, 1))


@functools.cache
def _wordy():
    config = CONFIGS["llama"].replace(n_layers=2, vocab_size=5000)
    return perturbed(ji.init(config, jax.random.key(0)))


def wordy(given):
    """A model of 5000 tokens: what is summed over them in half precision is far off."""
    return given.cast(_wordy())


def loud(given):
    """A model whose stream is so long that float16 cannot hold the square of its length."""
    model = given.model()
    embed = model.params.embed.replace(W_E=model.params.embed.W_E * 512)
    return model.replace(params=model.params.replace(embed=embed))


def examples(given, width=16, apart=1.0):
    """Activations [2 400 width] around 30, and labels [400] that shift them."""
    labels = np.arange(400) % 2
    noise = np.random.default_rng(0).standard_normal((2, 400, width))
    return given.cast(30 + noise + apart * labels[:, None] * np.linspace(-1, 1, width)), labels


# Lenses -------------------------------------------------------------------------------------------


@case("lens.read", within={"bfloat16": 3e-3, "float16": 1e-3})
def lens_is_of_its_own_logits(given):
    """What is read of the last stream, beside float64 readings of the model's own logits."""
    model = wordy(given)
    found = lens.read(model, PROMPTS, top=5000).isel(layer=-1)
    logits = np.asarray(ji.forward(model, PROMPTS).logits, np.float64)
    log_p = scipy.special.log_softmax(logits, -1)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    next_log_p = np.take_along_axis(log_p[:, :-1], PROMPTS[:, 1:, None], -1)[..., 0]
    return {
        "entropy": found.entropy.values / entropy,
        "log_prob": found.log_prob.values[:, :-1] / next_log_p,
        "mass": np.exp(found.top_log_prob.values.astype(np.float64)).sum(-1),
        "kl": 1 + found.kl.values,
    }


def _read(model, own=None, **options):
    found = lens.read(model, PROMPTS, own, **options)
    return found[["kl", "entropy", "log_prob", "top_log_prob"]]


@case("lens.read", within=SMALL, long=True)
def lens_of_every_point(given):
    return {
        "stream": _read(given.model()),
        "site": _read(given.model("gemma2"), site="attn_out"),
    }


def _tuned(given):
    return lens.TunedLens(given.normal(3, 8, 8, scale=0.1), given.normal(3, 8, scale=0.1, seed=1))


@case(
    "lens.TunedLens.__call__", "lens.JacobianLens.__call__", "lens.LogitLens.__call__",
    own=True, within=ROUNDED,
)  # fmt: skip
def lenses_of_streams(given):
    streams = given.normal(4, 5, 8, scale=30)
    jacobian = lens.JacobianLens(given.normal(3, 8, 8, scale=0.1))
    return [one(streams) for one in (_tuned(given), jacobian, lens.LogitLens())]


@case("lens.train_tuned", within=GRADIENT, long=True)
def tuned_lens(given):
    trained, losses = lens.train_tuned(given.model(), [PROMPTS] * 4, 4)
    again, more = lens.train_tuned(
        given.model(), [PROMPTS] * 2, 2, start=_tuned(given), rows=5, optimizer=optax.sgd(1e-2)
    )
    return {"losses": losses, "b": trained.b, "more": more, "W": again.W}


@case("lens.fit_jacobian", within=GRADIENT)
def jacobian_lens(given):
    return lens.fit_jacobian(given.model(), [np.tile(PROMPTS, (16, 1))] * 2, chunk=8).J


@case("lens.save", "lens.load", own=True, within=EXACT)
def lens_on_disk(given):
    path = lens.save(Path(FOLDER.name) / given.dtype, _tuned(given), overwrite=True)
    return vars(lens.load(path))


@case("lens.patchscope", long=True)
def patchscopes(given):
    found = lens.patchscope(given.model(), PROMPTS, 3, OTHER, 2, layers=[0, 2])
    return found.log_prob


no_numbers("zeros, in float32 or wider", "lens.start_tuned")
no_numbers("an optimizer, for parameters of any dtype", "lens.published_optimizer")
no_numbers("a protocol that lenses fulfil", "lens.Lens.__call__")
no_numbers(
    "checks of shapes", "lens.Lens.check", "lens.LogitLens.check", "lens.TunedLens.check",
    "lens.JacobianLens.check",
)  # fmt: skip


# Direct logit attribution, heads, neurons ---------------------------------------------------------


@case("attribute_logits", "decomposition.top_components", within=SMALL, long=True)
def shares_of_logits(given):
    found = {}
    for name, by in (("llama", "head"), ("gemma2", "neuron"), ("neox", "layer")):
        shares = ji.attribute_logits(given.model(name), PROMPTS, CORRECT, WRONG, by=by)
        n = shares.sizes["component"]
        found[name] = ji.decomposition.top_components(shares, n).sortby("component")
    return found


@case("attribute_stream")
def shares_of_the_stream(given):
    direction = given.normal(8, scale=30)
    return ji.attribute_stream(given.model(), PROMPTS, direction, layer=2, by="neuron")


@case("heads.pattern_scores", "heads.attention", long=True)
def where_heads_look(given):
    tokens = as_tokens(np.concatenate([PROMPTS, PROMPTS], 1))
    small = given.model()
    blocks = small.params.blocks  # values that float16 would lose: what is moved is tiny
    quiet = small.replace(
        params=small.params.replace(
            blocks=blocks.replace(attn=blocks.attn.replace(W_O=blocks.attn.W_O * 2**-12))
        )
    )
    return {
        "induction": heads.pattern_scores(small, tokens, "induction"),
        "by_value": heads.pattern_scores(quiet, tokens, "previous_token", by_value=True),
        "one": heads.attention(small, PROMPTS[0]),
        "one_by_value": heads.attention(quiet, PROMPTS[0], by_value=True),
    }


@case("heads.composition_scores", within=EXACT)
def what_heads_read_of_each_other(given):
    return [heads.composition_scores(given.model(), kind) for kind in "qkv"]


@case("heads.copying_scores")
def whether_heads_copy(given):
    copying = heads.copying_scores(wordy(given))
    return {"copying": copying, "through": heads.copying_scores(given.model(), through_mlp=True)}


@case("heads.ov_circuits", "heads.qk_circuits", own=True, within=EXACT)
def circuits_of_heads(given):
    return [heads.ov_circuits(given.model()), heads.qk_circuits(given.model())]


@case(
    "factored.FactoredMatrix.dense", "factored.FactoredMatrix.norm",
    "factored.FactoredMatrix.svd", "factored.FactoredMatrix.eigenvalues",
    "factored.FactoredMatrix.__matmul__", "factored.FactoredMatrix.T",
    "factored.FactoredMatrix.__getitem__", "factored.FactoredMatrix.shape", within=EXACT,
)  # fmt: skip
def products_of_thin_matrices(given):
    """Entries near 300: their squares are beyond float16."""
    A, B = given.normal(3, 40, 4, scale=300), given.normal(3, 4, 40, scale=300, seed=1)
    matrix = FactoredMatrix(A, B)
    assert matrix.shape == matrix.T.shape == (3, 40, 40)
    eigenvalues = np.sort_complex((matrix @ matrix)[0].eigenvalues())
    return {
        "dense": matrix.dense(), "norm": matrix.T.norm(), "singular": matrix.svd()[1],
        "sides": [np.abs(side) for side in matrix.svd()[::2]],
        "real": eigenvalues.real, "imaginary": eigenvalues.imag,
    }  # fmt: skip


no_numbers(
    "masks of tokens, from their ids alone", "heads.previous_token", "heads.duplicate_token",
    "heads.induction", "heads.first_token",
)  # fmt: skip
no_numbers("token ids, drawn from a seed", "heads.repeated_tokens")


@case("neurons.top_examples", long=True)
def tops_of_neurons(given):
    return neurons.top_examples(given.model(), [IDS, IDS[::-1]], k=5).value


@case("neurons.top_examples", within=EXACT, long=True)
def counts_of_neurons(given):
    """Every token falls into one of the bins: 5600 of them, of each neuron."""
    found = neurons.top_examples(given.model(), [copies()] * 2, k=1, edges=[0.0])
    return found["count"].sum("bin")


@case("neurons.Neurons.__call__", own=True)
def values_of_neurons(given):
    reader = neurons.Neurons(jnp.asarray([0, 2]), "mlp_post")
    return reader(given.model(), as_tokens(PROMPTS))


@case("neurons.written_tokens", within=EXACT)
def what_neurons_write(given):
    found = neurons.written_tokens(given.model(), 1, k=5)
    return {"gemma2": neurons.written_tokens(given.model("gemma2"), 1, k=5), "llama": found}


# Activations as data ------------------------------------------------------------------------------


@case("collect")
def activations_at_positions(given):
    model = given.model()
    return {
        "last": ji.collect(model, PROMPTS), "mean": ji.collect(model, PROMPTS, "mean"),
        "mean_of_a_prompt": ji.collect(loud(given), np.tile(PROMPTS, (1, 40)), "mean"),
        "site": ji.collect(model, PROMPTS, 2, site="z"),
    }  # fmt: skip


@case("activation_statistics")
def statistics_of_copies(given):
    many = [np.concatenate([copies(), np.tile(OTHER, (50, 1))])] * 2
    return ji.activation_statistics(loud(given), many, covariance=True, sample=20000)


# Probes, directions, erasure ----------------------------------------------------------------------


@case("probes.fit_logistic", "probes.Probes.__call__", within={"bfloat16": 1e-3, "float16": 1e-3})
def logistic_probes(given):
    X, labels = examples(given)
    found = probes.fit_logistic(
        X, labels, given.cast(np.ones((2, 400))), given.cast([0.125, 1.0]), n_classes=2
    )
    one = probes.fit_logistic(X[0], labels, np.ones((1, 400)), [0.5], n_classes=2)
    return {"W": found.W, "loss": found.loss, "logits": one(X[0]), "one": one.W}


@case("probes.fit_ridge", "probes.fit_means", "probes.Probes.__call__", within=EXACT)
def linear_probes(given):
    X, labels = examples(given)
    weights = given.cast(np.ones((1, 400)))
    made = [
        probes.fit_ridge(X[0], given.cast(labels * 300), weights, given.cast([0.5])),
        probes.fit_means(X[0], labels, weights),
        probes.fit_means(X[0], labels, weights, whitened=True),
    ]
    return [[one.W, one.b, one.loss, one(X[0])] for one in made]


@case("probes.probe", "probes.sparse_probe", within={"bfloat16": 1e-3, "float16": 1e-3}, long=True)
def probes_of_points(given):
    X, labels = examples(given, apart=0.5)
    options = {"splits": 2, "penalties": [1e-2, 1.0]}
    dense = probes.probe(X, labels, **options, baselines={"own": np.asarray(X[0])})
    sparse = probes.sparse_probe(X, labels, ks=(1, 4), **options)
    return {"dense": dense, "accuracy": sparse.accuracy, "unit": sparse.unit}


no_numbers("counts of tokens, from their ids alone", "probes.text_baselines")
no_numbers(
    "which examples are where, from labels alone", "probes.make_splits",
    "probes.Splits.__getitem__", "probes.Splits.check",
)  # fmt: skip


@case(
    "directions.from_means", "directions.from_pairs", "directions.from_probe",
    "directions.principal", "directions.random_like", "directions.top_examples", within=EXACT,
)  # fmt: skip
def directions_from_activations(given):
    X, labels = examples(given)
    found = probes.probe(X, labels, splits=2, penalties=[1.0])
    made = [
        directions.from_means(X, labels), *directions.principal(X[0], 2),
        directions.from_pairs(X[:, ::2], X[:, 1::2]), directions.from_probe(found),
        directions.from_pairs(X[:, ::2], X[:, 1::2], method="pca"),
        *directions.random_like(directions.from_means(X[0], labels), 2),
    ]  # fmt: skip
    made[4] = made[4] * 1e-3  # a fit, compared above
    top = directions.top_examples(made[1], X[0] * 8, list(map(str, range(400))), 3)
    return {"vectors": [one.vector for one in made], "top": [value for value, _ in top]}


@case(
    "Direction.cosine", "Direction.norm", "Direction.unit", "Direction.without",
    "Direction.project", "Direction.__getitem__", "Direction.save", "Direction.load",
    within=EXACT,
)  # fmt: skip
def algebra_of_directions(given):
    a = ji.Direction(given.normal(2, 64, scale=300))
    b = ji.Direction(given.normal(2, 64, scale=300, seed=1))
    X = given.normal(2, 400, 64, scale=300, seed=2)
    kept = ji.Direction.load((a + b).save(Path(FOLDER.name) / f"{given.dtype}.npz"))
    return {
        "cosine": a.cosine(b), "norm": a.norm, "unit": a.unit.vector, "rest": a.without(b).vector,
        "by_layer": a.project(X), "one": a[0].project(X[0]), "kept": (kept * 2 - b).vector,
    }  # fmt: skip


@case("Direction.ablate", "Direction.add")
def directions_in_runs(given):
    direction, model = ji.Direction(given.normal(8, scale=300)), given.model()
    edits = [direction.ablate(), direction.add(0.01, layer=1)]
    return [ji.evaluate(ji.logit_diff(CORRECT, WRONG), model, PROMPTS, edit) for edit in edits]


@case(
    "erasure.leace", "erasure.inlp", "erasure.mean_eraser", "erasure.direction_eraser",
    "erasure.random_eraser", "erasure.stack", "erasure.Eraser.rank", within=EXACT,
)  # fmt: skip
def erasers(given):
    X, labels = examples(given)
    made = [
        erasure.leace(X[0], labels), erasure.mean_eraser(X[0], labels),
        erasure.direction_eraser(X[0][:3]), erasure.inlp(X[0], labels, 2),
        erasure.random_eraser(16, 2, centre=X[0][0]),
    ]  # fmt: skip
    stacked = erasure.stack(made[:2])
    spans = [e.removed @ e.put for e in made]  # signs within a span are free
    return {"spans": spans, "centres": [e.centre for e in made], "rank": stacked.rank}


@case("erasure.Eraser.__call__", own=True, within=ROUNDED)
def what_erasers_leave(given):
    """All but one of 64 directions goes, of values near 300: sums that half precision rounds."""
    eraser = erasure.random_eraser(64, 63)
    X = given.normal(400, 64, scale=300)
    return {"device": eraser(X), "host": eraser(np.asarray(X))}


@case("erasure.orthogonalize", own=True, within=ROUNDED)
def models_without_a_direction(given):
    found = erasure.orthogonalize(given.model(), given.normal(7, 8))
    return jax.tree.leaves(found.params)


@case("probe_and_erase", long=True)
def probed_and_erased(given):
    metric = ji.logit_diff([4] * 40, [8] * 40)
    found = ji.probe_and_erase(given.model(), IDS, LABELS, metric, layers=[0, 2], placebos=1)
    return found[["value", "majority"]]


# Steering -----------------------------------------------------------------------------------------


@case("steering.mean_norms")
def norms_of_streams(given):
    return {
        "copies": steering.mean_norms(given.model(), copies(), batch=400),
        "loud": steering.mean_norms(loud(given), PROMPTS, first=True),
    }


@case("steer", "steering.side_effects", "steering.continuations", within=SMALL, long=True)
def steered(given):
    model, metric = given.model(), ji.logit_diff(CORRECT, WRONG)
    direction = ji.Direction(given.normal(8))
    own = {"directions": {"one": direction}, "layers": [1], "placebos": 1}
    few = {"coefficients": [0.5, 1.0]}
    found = [
        steering.side_effects(model, PROMPTS, measure=measure, **own, **few)
        for measure in ("kl", "cross_entropy")
    ]
    made = steering.continuations(model, PROMPTS, direction, 1, [0.0, 1.0], 3)
    return {
        "metric": ji.steer(model, PROMPTS, metric, **own, **few), "effects": found,
        "loss": made.loss,
    }  # fmt: skip
