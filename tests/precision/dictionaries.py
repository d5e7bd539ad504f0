"""Cases of dictionaries: on activations, and in a model."""

import functools
import itertools
import tempfile
from pathlib import Path

import jax
import numpy as np
from cases import EXACT, GRADIENT, case, no_numbers
from small_models import CONFIGS, CORRECT, OTHER, PROMPTS, WRONG

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.model import as_tokens

DIFF = ji.logit_diff(CORRECT, WRONG)
LEARNED = {"bfloat16": 1e-3, "float16": 1e-3}  # what is fitted, of given values
SMALL = {"bfloat16": 0.12, "float16": 0.02}  # numbers that are differences of larger ones
ACTIVATIONS = ("relu", "gated", "topk", "batch_topk", "jumprelu")
FOLDER = tempfile.TemporaryDirectory()
LETTERS = np.repeat(np.arange(3), 40)


def blocks(n, shape=(4, 7)):
    return [np.random.default_rng(i).integers(2, 17, shape) for i in range(n)]


def of_kind(given, activation="relu", seed=0, scale=1 / 3, **fields):
    """A random dictionary in the dtype, by default an SAE of a small model's stream."""
    if not fields.get("layers") and fields.get("kind", "sae") == "sae":
        fields = {"site": "resid_post", "layers": (1,), **fields}
    config = sae.DictionaryConfig(
        **{"d_in": 8, "n_features": 20, "activation": activation, **fields}
    )
    rng = np.random.default_rng(seed)
    arrays = {n: scale * rng.standard_normal(shape) for n, shape in config.shapes.items()}
    if "r_mag" in arrays:  # an exponent
        arrays["r_mag"] = np.clip(arrays["r_mag"], -1, 1)
    if "threshold" in arrays:
        arrays["threshold"] = np.abs(arrays["threshold"])
    k = 3 if activation.endswith("topk") else None
    return sae.Dictionary(sae.Parameters(**given.cast(arrays)), config, k)


def several(given, site="resid_post", layers=(0, 1)):
    return [of_kind(given, seed=i, layers=(i,), site=site, n_features=6) for i in layers]


# Dictionaries on activations ----------------------------------------------------------------------


@case(
    "sae.Dictionary.__call__", "sae.Dictionary.encode", "sae.Dictionary.decode", "sae.encode",
    "sae.decode", within=EXACT,
)  # fmt: skip
def codes(given):
    """Values near 300 through 64 dimensions: a sum is beyond float16."""
    found = {}
    for activation in ACTIVATIONS:
        d = of_kind(given, activation, d_in=64, scale=8.0)
        x = given.normal(50, 64, scale=300)
        features = d.encode(x)
        found[activation] = [features, d.decode(features), d(x), sae.encode(d, x, together=True)]
    d = of_kind(given, kind="cross_layer", n_layers=2, d_out=5)
    layered = sae.encode(d, given.normal(50, 2, 8, scale=300)).features
    found["layered"] = [layered, sae.decode(d, layered)]
    return found


@case("sae.loss", within=EXACT, long=True)
def losses_of_dictionaries(given):
    found = {}
    for activation in ACTIVATIONS:
        d, x = of_kind(given, activation, d_in=64), given.normal(400, 64, scale=30, shift=10)
        coefficients = sae.LossCoefficients(sparsity=0.5, exponent=0.5, auxk=0.5)
        dead = np.arange(20) < 10
        value, (parts, _) = sae.loss(d, x, x, coefficients, dead, k_aux=4)
        found[activation] = {"loss": value, "parts": parts}
    return found


@case("sae.reconstruction", within=EXACT)
def qualities_of_dictionaries(given):
    d, x = of_kind(given, d_in=64, scale=0.05), given.normal(400, 64, scale=300, shift=10)
    return sae.reconstruction(d, [x, x[:200]])


@case("sae.nearest", "sae.recovery", "sae.detection", within=EXACT)
def directions_of_dictionaries(given):
    d, truth = of_kind(given), given.normal(7, 8, scale=300, seed=1)
    x = given.normal(400, 8)
    there = given.cast(np.maximum(np.asarray(x, np.float32) @ np.eye(8, 7), 0))
    rows = d.params.W_dec
    return {
        "nearest": sae.nearest(d, k=3), "recovery": sae.recovery(rows, truth),
        "detection": sae.detection(d.encode(x), there, rows, truth),
    }  # fmt: skip


@case(
    "sae.Scaling.__call__", "sae.measure_scaling", "sae.geometric_median", "sae.fold",
    within=EXACT,
)  # fmt: skip
def scalings(given):
    x = given.normal(400, 16, scale=300, shift=300)
    scaling = sae.measure_scaling(x, x, centre="median")
    d = of_kind(given, "gated", d_in=16)
    return {
        "scaling": scaling, "scaled": scaling(x, x), "median": sae.geometric_median(np.asarray(x)),
        "folded": vars(sae.fold(d, scaling).params),
    }  # fmt: skip


@case("sae.train", "sae.advance", "sae.update", within=LEARNED, long=True)
def training_of_dictionaries(given):
    """Of activations in the dtype: what is learned from them is in float32."""
    batches = [given.normal(64, 8, scale=30, shift=100, seed=i) for i in range(6)]
    run = sae.TrainingConfig(6, dead_after=100, k_aux=3)
    found = {}
    for activation, member in (
        ("relu", sae.Hyperparameters(sparsity=0.05)), ("batch_topk", sae.Hyperparameters(k=3)),
    ):  # fmt: skip
        config = sae.DictionaryConfig(8, 20, activation=activation)
        made = sae.train(config, batches, run, member.replace(learning_rate=3e-3), log_every=1)
        found[activation] = {"params": vars(made.dictionaries[0].params), "history": made.history}
    config, member = sae.DictionaryConfig(8, 20), sae.Hyperparameters(sparsity=0.05)
    state, seen = sae.update(
        sae.start(config, run, member), member, batches[0], batches[1], run, auxk=False
    )
    states, members = jax.tree.map(lambda leaf: leaf[None], sae.start(config, run, member)), member
    states, _, seen_together = sae.advance(
        states, sae.Given(), members.spread(), sae.measure_scaling(batches[0], batches[0]),
        batches[1], training=run,
    )  # fmt: skip
    found["advanced"] = [vars(states.dictionary.params), seen_together.parts]
    return {**found, "moments": list(state.moments)[1:], "parts": seen.parts}


def of_letters(given):
    """Words' activations, a direction for each of three letters, and a dictionary of them."""
    noise = np.random.default_rng(0).standard_normal((120, 16))
    x = given.cast(100 + 20 * np.eye(3, 16)[LETTERS] + noise)
    return x, given.normal(3, 16) + given.cast(4 * np.eye(3, 16)), of_kind(given, d_in=16)


@case("sae.absorption_rates", "sae.split_features", within=EXACT)
def absorption(given):
    x, probes, d = of_letters(given)
    train = np.arange(120) % 2 == 0
    split = sae.split_features(d, x, LETTERS, train, ~train, max_k=2)
    rates = sae.absorption_rates(
        d, x, LETTERS, probes, [[0], [1], [2]], about=given.cast(np.full(16, 100)), share=0.1
    )
    return {"rates": rates, "ranked": split.ranked, "f1": split.f1}


@case("sae.Spelling.fit", "sae.Spelling.measure", within=EXACT, long=True)
def spelling(given):
    x, _, d = of_letters(given)
    words = [f"{'abc'[letter]}{i}" for i, letter in enumerate(LETTERS)]
    found = sae.Spelling.fit(words, x, min_letters=3, min_f1=0, penalties=np.asarray([1e-2]))
    return {"f1": found.f1, "rows": found.rows, "measured": found.measure(d, max_k=2).full}


@case("sae.save", "sae.load", within=EXACT)
def dictionaries_on_disk(given):
    path = Path(FOLDER.name) / f"dictionary-{given.dtype}"
    sae.save(path, of_kind(given, "topk"), overwrite=True)
    return vars(sae.load(path).params)


no_numbers(
    "it is drawn from a seed, in float32, of no model and no activations", "sae.start",
    "sae.synthetic", "sae.Synthetic.__call__", "sae.batches",
)  # fmt: skip
no_numbers(
    "it says where a dictionary is, and of which shapes", "sae.DictionaryConfig.feature_axes",
    "sae.DictionaryConfig.layered", "sae.DictionaryConfig.place",
    "sae.DictionaryConfig.read_place", "sae.DictionaryConfig.shapes",
    "sae.DictionaryConfig.write_axes", "sae.Exchange.sites",
)  # fmt: skip
no_numbers(
    "settings of a run, of no model and no activations", "sae.Hyperparameters.check",
    "sae.Hyperparameters.spread", "sae.TrainingConfig.auxk_of", "sae.TrainingConfig.coefficients",
    "sae.TrainingConfig.rate", "sae.Given.about", "sae.Harvest.about",
)  # fmt: skip
no_numbers("nothing changes from batch to batch", "sae.Given.kept")


# Dictionaries in a model --------------------------------------------------------------------------


@case("sae.values_at", "sae.harvest", "sae.Harvest.take", "sae.Harvest.kept", "sae.Given.take",
      own=True, long=True)  # fmt: skip
def harvests(given):
    """What stands in a model, in its dtype."""
    config = sae.DictionaryConfig(8, 4, site="resid_post", layers=(1,))
    source = sae.harvest(given.model(), config, blocks(2))
    after, x, _ = source.take(as_tokens(PROMPTS))
    _, same, _ = sae.Given().take(x)
    own, _ = sae.values_at(given.model(), PROMPTS, config, first=True)
    return {"x": x, "same": same, "kept": after.kept["inputs"], "own": own}


@case("sae.harvest_to", "sae.open_store", "sae.Store.chunk", "sae.Store.batches",
      "sae.Store.norm_limit")  # fmt: skip
def stores(given):
    config = sae.DictionaryConfig(8, 4, site="resid_post", layers=(1,))
    path = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "store"
    sae.harvest_to(path, given.model(), config, blocks(3), dtype="float32")
    store = sae.open_store(path)
    drawn = [np.asarray(batch) for batch in store.batches(8, epochs=1)]
    return {"chunk": store.chunk(1), "drawn": drawn, "limit": store.norm_limit(3)}


@case("sae.loss_recovered", long=True)
def losses_recovered(given):
    mean = given.normal(8)
    found = sae.loss_recovered(given.model(), of_kind(given, scale=0.2), [PROMPTS, OTHER], mean)
    return found[["original", "dictionary", "zero", "mean"]]


@case("sae.top_examples", "sae.feature_effects", within=SMALL, long=True)
def features_in_runs(given):
    model, d = given.model(), of_kind(given)
    tops = sae.top_examples(model, d, blocks(2), k=3, features=[1, 4])
    return {
        "top": np.where(np.isfinite(tops.value), tops.value, 0),
        "effects": sae.feature_effects(model, d, PROMPTS, [1, 4]).drop_vars("active"),
    }


@case("sae.study_features", long=True)
def studies(given):
    found = sae.study_features(given.model(), of_kind(given), blocks(4), k=2, sample=50, written=2)
    return found[["upper", "cosine", "change"]].isel(group=0)


@case("sae.written_tokens", within=EXACT)
def what_features_write(given):
    return sae.written_tokens(given.model(), of_kind(given), k=4)


@case(
    "sae.scale_features", "sae.add_to_features", "sae.set_features", "sae.FeatureEdit.__call__",
    "sae.Splice.__call__", long=True,
)  # fmt: skip
def edits_of_features(given):
    model, d = given.model(), of_kind(given, scale=0.2)
    edits = [
        sae.scale_features(d, 1, 3.0), sae.add_to_features(d, 2, 5.0), sae.set_features(d, 3, 4.0),
        ji.apply("resid_post", sae.Splice(d, error=0.0), layer=1),
    ]  # fmt: skip
    return [ji.evaluate(ji.logit(4), model, PROMPTS, edit) for edit in edits]


@case("sae.attribute_features", "sae.feature_nodes", within=GRADIENT, long=True)
def attributions_of_features(given):
    model = given.model()
    return {
        "features": sae.attribute_features(model, of_kind(given), PROMPTS, DIFF, steps=3),
        "nodes": sae.feature_nodes(model, several(given), PROMPTS, DIFF, donor=OTHER),
    }


@case("sae.feature_edges", "sae.select_nodes", "sae.feature_circuit", within=GRADIENT, long=True)
def circuits_of_features(given):
    model, some = given.model(), several(given)
    nodes = sae.feature_nodes(model, some, PROMPTS, DIFF)
    chosen = sae.select_nodes(nodes, 0.0)
    whole = sae.feature_circuit(
        model, some, PROMPTS, DIFF, node_threshold=0.0, edge_threshold=0.0, steps=1
    )
    return {"edges": sae.feature_edges(model, some, PROMPTS, DIFF, chosen), "circuit": whole}


@case(
    "sae.evaluate_feature_circuit", "sae.faithfulness", "sae.Exchange.__call__", within=SMALL,
    long=True,
)  # fmt: skip
def judged_circuits_of_features(given):
    model, some = given.model(), several(given)
    nodes = sae.feature_nodes(given.model(), some, PROMPTS, ji.logit(4))
    chosen = nodes.isel(node=[0, 2, 6, 9, 13])
    options = {"donor": OTHER, "mean": True}
    found = sae.evaluate_feature_circuit(model, chosen, some, PROMPTS, ji.logit(4), **options)
    share = sae.faithfulness(model, chosen, some, PROMPTS, ji.logit(4), **options)
    return {"value": found, "share": share}


@functools.cache
def _words():
    """A model whose embedding tells words' first letters, and its tokenizer."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    words = ["".join(w) for w in itertools.product("abc", "aeiou", "lmnrst")]
    names = ["[UNK]", *(f" {w}" for w in words), " has", " the", " first", " letter:", "\n"]
    names += [f" {letter}" for letter in "ABC"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?[^ \n]+|\n"), "isolated")
    config = CONFIGS["llama"].replace(vocab_size=len(names), d_model=16, n_ctx=30)
    model = ji.init(config, jax.random.key(0))
    W_E = 0.3 * np.random.default_rng(0).standard_normal((len(names), 16))
    for i, word in enumerate(words):
        W_E[1 + i, "abc".index(word[0])] += 6
    embed = model.params.embed.replace(W_E=W_E)
    model = model.replace(params=model.params.replace(embed=embed))
    return model, ji.Tokenizer(backend), words


@case("sae.first_letter", "sae.fit_spelling", long=True)
def first_letters(given):
    model, tokenizer, words = _words()
    model = given.cast(model)
    W_enc = given.cast(np.eye(16, 3))
    d = sae.Dictionary(
        sae.Parameters(W_enc, given.cast(np.full(3, -3)), W_enc.T, given.cast(np.zeros(16))),
        sae.DictionaryConfig(16, 3, site="resid_post", layers=(0,)),
    )
    options = {"words": words, "examples": 2, "min_letters": 3}
    spelled = sae.fit_spelling(model, tokenizer, "resid_post", 0, **options)
    found = sae.first_letter(model, d, tokenizer, max_k=2, **options)
    return {"x": spelled.x, "f1": spelled.f1, "found": found[["full", "silent", "f1"]]}
