"""Cases of the model itself: its stages, metrics, interventions, generation and rewrites."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import EXACT, FORWARD, case
from small_models import CONFIGS, CORRECT, OTHER, PROMPTS, WRONG

import jaxinterp as ji
from jaxinterp.model import as_tokens
from jaxinterp.nnx import Transformer

TOKENS = as_tokens(PROMPTS)
ROUNDED = {"bfloat16": 0.005, "float16": 0.0007}  # of numbers that are rounded once
LOSS = ji.log_prob(CORRECT)
SITES = ("resid_post", "z", "pattern", "mlp_post", "ln_final_normalized")


# The forward pass ---------------------------------------------------------------------------------


@case("forward", own=True)
def forward(given):
    out = ji.forward(given.model(), PROMPTS, record=SITES)
    return {"logits": out.logits, **out.activations}


@case("nnx.Transformer.__call__", "nnx.Transformer.model", "Model.W_U", own=True, long=True)
def forward_in_flax(given):
    module = Transformer(given.model("neox"))
    return module(PROMPTS).logits, module.model().W_U


@case("embed", "run_layers", "unembed", own=True, long=True)
def stages(given):
    model = given.model("gemma2")
    x, _ = ji.embed(model, PROMPTS)
    end, _ = ji.run_layers(model, x, PROMPTS)
    return x, end, ji.unembed(model, end)[0]


@case("observe", own=True, long=True)
def observed(given):
    base, recorded = ji.observe(given.model(), TOKENS, LOSS, record=("z",))
    return base, recorded


@case("evaluate", "metrics.read_out", long=True)
def metrics_of_a_forward(given):
    model, tokens = given.model(), as_tokens(PROMPTS)
    frame = ji.Frame(tokens.positions)
    x = given.normal(2, 7, 8, scale=20)
    far = ji.logit_diff(CORRECT, WRONG, position="all")
    own = ji.metric(_mean_logit)
    return {
        "log_prob": ji.evaluate(LOSS, model, tokens),
        "loss": ji.evaluate(ji.cross_entropy(), model, tokens),
        "own": ji.evaluate(own, model, tokens),
        "of a stream": ji.metrics.read_out(model, x, tokens, far, frame),
    }


def _mean_logit(logits):
    return jnp.square(logits).mean((1, 2))


# Metrics ------------------------------------------------------------------------------------------


@case("logit_diff", "logit", "log_prob", "prob", "prob_diff", "rank", "accuracy", within=EXACT)
def metrics_of_answers(given):
    logits = given.normal(2, 1, 1000, scale=3)
    pair, one = (CORRECT, WRONG), (CORRECT,)
    made = [ji.logit_diff(*pair), ji.prob_diff(*pair), ji.logit(*one), ji.log_prob(*one)]
    made += [ji.prob(*one), ji.rank(*one), ji.accuracy(*one)]
    return {metric.name: metric(logits, TOKENS) for metric in made}


@case("kl", "cross_entropy", "metric", within=EXACT)
def metrics_of_distributions(given):
    logits, reference = given.normal(2, 600, 50, scale=2), given.normal(2, 600, 50, seed=1)
    ids = np.random.default_rng(0).integers(0, 50, (2, 600))
    tokens = as_tokens(ids)
    own = ji.metric(_spread, position="all", data=(reference,))
    return {
        "kl": ji.kl(reference, position="all")(logits, tokens),
        "loss": ji.cross_entropy()(logits[:, :-1], tokens),
        "own": own(logits, tokens),
    }


def _spread(logits, reference):
    return jnp.square(logits - reference).mean((1, 2))


@case("handbuilt.Known.metric", within=EXACT)
def metric_of_a_handbuilt_model(given):
    known = ji.handbuilt.reversal()
    pairs = known.make(4, known.lengths[-1])
    logits = given.normal(4, pairs.answers.shape[1], len(known.alphabet), scale=4)
    return known.metric(pairs.answers, pairs.wrong)(logits, pairs.clean)


@case("normalized", within=EXACT)
def normalized(given):
    effect = given.normal(5, 300, scale=0.1, shift=20)
    clean, corrupted = given.normal(300, shift=21, seed=1), given.normal(300, shift=19, seed=2)
    arrays = [np.asarray(each) for each in (effect, clean, corrupted)]
    return ji.normalized(effect, clean, corrupted), ji.normalized(*arrays)


@case("tasks.check", long=True)
def ability(given):
    tokens, other = as_tokens(np.tile(PROMPTS, (200, 1))), as_tokens(np.tile(OTHER, (200, 1)))
    answers, wrong = np.tile(CORRECT, 200), np.tile(WRONG, 200)
    texts = ("",) * 400
    metric = ji.log_prob(answers)
    task = ji.Task("copies", tokens, other, metric, answers, wrong, {}, texts, texts)
    return ji.tasks.check(given.model(), task)


# Interventions ------------------------------------------------------------------------------------


@case(
    "Edit.__call__", "replace", "zero", "add", "scale", "project_out", "apply",
    within=ROUNDED, own=True,
)  # fmt: skip
def edits(given):
    config = CONFIGS["llama"].replace(d_model=512)
    at = ji.At(
        "resid_post",
        config,
        jnp.int32(1),
        ji.Frame(TOKENS.positions),
        jnp.asarray(TOKENS.positions),
    )
    value, long = given.normal(2, 7, 512, shift=20), given.normal(512, scale=300, seed=1)
    short = given.cast(np.asarray(given.normal(512, seed=2), np.float32) * 1e-4)
    site = "resid_post"
    made = {
        "replace": ji.replace(site, long),
        "zero": ji.zero(site, position=2),
        "add": ji.add(site, long),
        "scale": ji.scale(site, 1.002, layer=1),
        "long": ji.project_out(site, long),
        "short": ji.project_out(site, short),
        "apply": ji.apply(site, _halved),
    }
    return {name: edit(value, at) for name, edit in made.items()}


_halved = jax.tree_util.Partial(lambda value, at: value / 2)


# Generation ---------------------------------------------------------------------------------------


@case("generate", "Generated.new", "Generated.kept", long=True)
def generated(given):
    model = given.model()
    greedy = ji.generate(model, PROMPTS, 3)
    key = jax.random.key(0)
    drawn = ji.generate(model, PROMPTS, 3, key=key, temperature=0.7, top_p=0.9)
    return greedy.new, greedy.kept(), greedy.log_probs, drawn.new, drawn.log_probs, drawn.lengths


# Rewrites of the weights --------------------------------------------------------------------------


def _rewritten(given, rewrite, name="neox"):
    """What a rewrite makes of the weights, and the log-probabilities then."""
    model = rewrite(given.model(name))
    return {"params": jax.tree.leaves(model.params), "logits": _log_probs(model)}


def _log_probs(model):
    return jax.nn.log_softmax(ji.forward(model, PROMPTS).logits.astype(jnp.float32))


@case("fold_norm", own=True, within=FORWARD, long=True)
def folded_norms(given):
    return _rewritten(given, ji.fold_norm)


@case("center_writing_weights", own=True, within=FORWARD, long=True)
def centred_writers(given):
    return _rewritten(given, ji.center_writing_weights)


@case("center_unembed", own=True, within=FORWARD, long=True)
def centred_unembedding(given):
    return _rewritten(given, ji.center_unembed)


@case("fold_value_biases", own=True, within=FORWARD, long=True)
def folded_value_biases(given):
    return _rewritten(given, ji.fold_value_biases)
