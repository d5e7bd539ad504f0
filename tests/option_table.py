"""Every public function with numeric options: how to call it, and what each option may not be."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
from option_calls import (
    BATCHES,
    COUNT,
    FRACTION,
    FRACTIONS,
    FROM_0,
    FROM_0_MANY,
    GRID,
    INDEX,
    INDICES,
    INSIDE,
    LABELS,
    MANY,
    MORE,
    NOT_NEGATIVE,
    NUMBERS,
    ONE,
    PAIRS,
    POSITIVE,
    POSITIVES,
    REAL,
    RUN,
    SEED,
    TWINS,
    M,
    X,
    absorbed,
    circuit,
    config,
    das,
    das_options,
    densities,
    dictionary,
    direction,
    direction_named,
    edges,
    experiment,
    known,
    of_circuit,
    on_dictionaries,
    on_features,
    ran,
    reading,
    result,
    scores,
    spelled,
    split,
    spread_over,
    store,
    sums,
    swept,
    task,
    words,
    world,
)
from small_models import DIFF, OTHER, PROMPTS

import jaxinterp as ji
from jaxinterp import report, sae
from jaxinterp.algorithmic import addition, boards, brackets, repeats, retrieval, shapes

STEPS = (*COUNT, 10**12)
SPELLING = {"tau": NOT_NEGATIVE, "max_k": (*COUNT, 99), "penalty": POSITIVE}

TABLE = {
    "Claim": (spread_over(ji.Claim, statement="s", model={}), {
        "level": INSIDE, "resamples": MANY, "seed": SEED}),
    "Experiment": (experiment, {"margin": POSITIVE}),
    "Config": (config, {
        **dict.fromkeys(("d_model", "n_heads", "d_head", "vocab_size", "n_ctx"), (
            *COUNT, 10**12)),
        **dict.fromkeys(
            ("n_layers", "d_mlp", "n_kv_heads", "n_token_types", "n_outputs"), FROM_0_MANY
        ),
        **dict.fromkeys(("attn_scale", "attn_softcap", "logit_softcap"), NOT_NEGATIVE),
        "norm_eps": NOT_NEGATIVE, "embed_scale": REAL, "rotary_kind": ((-1,), (1,), (0.0,)),
        "windows": ((-1,), (1.5,), (True,), (math.nan,)),
    }),
    "Rotary": (spread_over(ji.Rotary, dim=2), {"dim": COUNT, "theta": POSITIVE, "scaling": (
        ("linear", 0.0), ("linear", -1.0), ("linear", math.nan), ("other", 2.0))}),
    "Direction.add": (lambda **o: direction().add(**o), {"factor": REAL}),
    "ablate": (spread_over(ji.ablate, **ONE, value="resample"), {
        "draws": MANY, "seed": SEED, **RUN, **GRID}),
    "ablation.ablation_grid": (
        spread_over(ji.ablation.ablation_grid, **ONE, components={"z": [(1, 1)]}),
        {"seed": SEED, **RUN}),
    "ablation.optimal_constants": (spread_over(ji.ablation.optimal_constants, **ONE), {
        "steps": STEPS, "rate": POSITIVE, "seed": SEED, **RUN, **GRID}),
    "activation_statistics": (spread_over(ji.activation_statistics, **BATCHES), {
        "layers": INDICES, "quantiles": FRACTIONS, "sample": MANY, "seed": SEED}),
    "algorithmic.addition.split": (addition.split, {"seed": SEED, "share": INSIDE}),
    "algorithmic.addition.task": world(addition.task),
    "algorithmic.boards.Game.random_games": world(boards.ATAXX.random_games),
    "algorithmic.boards.Game.random_positions": world(boards.ATAXX.random_positions),
    "algorithmic.boards.Probes.read": (
        spread_over(boards.Probes(np.ones((2, 3, 4, 2)), np.ones((2, 3, 2))).read, x=np.ones(4)),
        {"point": INDEX}),
    "algorithmic.brackets.strings": world(brackets.strings),
    "algorithmic.brackets.task": (brackets.task, {"n": MANY, "seed": SEED, "pairs": MANY}),
    "algorithmic.repeats.said_twice": (
        spread_over(repeats.said_twice, n=2), {"n": MANY, "length": MANY, "seed": SEED}),
    "algorithmic.repeats.sequences": (
        spread_over(repeats.sequences, n=2), {"n": MANY, "length": MANY, "seed": SEED}),
    "algorithmic.repeats.task": (repeats.task, {
        "n": MANY, "seed": SEED, "length": MANY, "copy": MANY}),
    "algorithmic.retrieval.prompts": (
        spread_over(retrieval.prompts, n=2), {"n": MANY, "seed": SEED, "pairs": MANY}),
    "algorithmic.retrieval.task": (retrieval.task, {
        "n": MANY, "seed": SEED, "pairs": MANY, "distractors": FROM_0_MANY}),
    "algorithmic.shapes.images": world(shapes.images),
    "algorithmic.shapes.task": world(shapes.task),
    "attribute": (spread_over(ji.attribute, **TWINS), {"steps": MANY, "batch": COUNT, **GRID}),
    "attribute_logits": (spread_over(ji.attribute_logits, model=M, tokens=PROMPTS, answer=[1, 2]), {
        "layer": INDEX, "position": (99, -99, 1.5, math.nan, "3"), "batch": COUNT}),
    "attribute_stream": (
        spread_over(ji.attribute_stream, model=M, tokens=PROMPTS, direction=np.ones(8)), {
            "layer": INDEX, "position": (99, -99, 1.5, math.nan, "3"), "batch": COUNT}),
    "attribution.interactions": (spread_over(ji.attribution.interactions, **TWINS), {
        "batch": COUNT, **GRID}),
    "batches_of": (lambda **o: next(ji.batches_of([{}], words(), **o)), {"size": COUNT}),
    "circuits.acdc": (edges(ji.circuits.acdc, threshold=0.1), {
        "threshold": (*POSITIVE, [0.1, math.nan]), "block": COUNT}),
    "circuits.attribute_edges": (edges(ji.circuits.attribute_edges), {
        "steps": MANY, "batch": COUNT}),
    "circuits.evaluate_circuits": (ran, RUN),
    "circuits.faithfulness_curve": (
        lambda **o: ji.circuits.faithfulness_curve(scores=scores(), **TWINS, **o),
        {"fractions": FRACTIONS}),
    "circuits.greedy_edges": (lambda **o: ji.circuits.greedy_edges(M, scores(), **o), {"n": COUNT}),
    "circuits.incompleteness": (of_circuit(ji.circuits.incompleteness), {
        "samples": MANY, "seed": SEED}),
    "circuits.minimality": (of_circuit(ji.circuits.minimality), {
        "samples": FROM_0_MANY, "seed": SEED}),
    "circuits.patch_edges": (edges(ji.circuits.patch_edges), RUN),
    "circuits.patch_paths": (edges(ji.circuits.patch_paths, receivers=["logits"]), RUN),
    "circuits.prune_edges": (edges(ji.circuits.prune_edges, share=0.5), {
        "share": INSIDE, "steps": STEPS, "learning_rate": POSITIVE, "seed": SEED, "batch": COUNT}),
    "circuits.specificity": (
        lambda **o: ji.circuits.specificity(
            M, circuit(), {"t": types.SimpleNamespace(record=dict, **TWINS)}, **o),
        {"batch": COUNT}),
    "circuits.top_edges": (lambda **o: ji.circuits.top_edges(M, scores(), **o), {"n": COUNT}),
    "circuits.Graph.layer_of": (lambda **o: circuit().graph.layer_of(**o), {"sender": INDEX}),
    "circuits.Graph.receiver": (
        lambda **o: circuit().graph.receiver(**{"kind": "q", "layer": 0, **o}),
        {"layer": INDEX, "head": INDEX}),
    "circuits.Graph.sender": (
        lambda **o: circuit().graph.sender(**{"layer": 0, "head": 0, **o}),
        {"layer": INDEX, "head": INDEX}),
    "circuits.Graph.where": (lambda **o: circuit().graph.where(**o), {"receiver": INDEX}),
    "claims.random_components": (
        spread_over(ji.claims.random_components, intervention=ji.zero("z", layer=1, head=1),
                    config=M.config),
        {"draws": MANY, "seed": SEED}),
    "collect": (spread_over(ji.collect, model=M, tokens=PROMPTS), {
        "position": (99, -99, 1.5, math.nan), "batch": COUNT}),
    "compare": (lambda **o: ji.compare(result(), result(), **{"k": 1, **o}), {
        "k": ((0,), (-1,), (1.5,), (99,)), "worst": FROM_0}),
    "comparison.exact_cells": (spread_over(ji.comparison.exact_cells, **TWINS), {
        "batch": COUNT, "layers": INDICES}),
    "comparison.missed_bound": (
        spread_over(ji.comparison.missed_bound, rest=9, drawn=3, missed=1), {
            "rest": FROM_0, "drawn": (*FROM_0, 10), "missed": (*FROM_0, 4), "level": INSIDE}),
    "comparison.verify": (
        lambda **o: ji.comparison.verify(result(), result(), **{"budget": 2, "k": 1, **o}), {
            "budget": (*COUNT, 99), "k": (*COUNT, 99), "top": (*COUNT, 99), "level": INSIDE,
            "seed": SEED}),
    "corpora.packed": (
        lambda **o: next(ji.corpora.packed(["w1"], words(), **{"length": 2, "batch": 1, **o})),
        {"length": COUNT, "batch": COUNT}),
    "decomposition.top_components": (
        lambda **o: ji.decomposition.top_components(result(), **o), {"n": COUNT}),
    "directions.principal": (spread_over(ji.directions.principal, X=X), {"k": (*COUNT, 99)}),
    "directions.random_like": (
        lambda **o: ji.directions.random_like(direction(), **{"n": 2, **o}),
        {"n": FROM_0_MANY, "seed": SEED}),
    "directions.top_examples": (
        lambda **o: ji.directions.top_examples(direction(), np.ones((1, 8)), ["a"], **o),
        {"k": COUNT}),
    "erasure.inlp": (spread_over(ji.erasure.inlp, X=X, labels=LABELS, rounds=1), {
        "rounds": MANY, "penalty": POSITIVE}),
    "erasure.leace": (spread_over(ji.erasure.leace, X=X, labels=LABELS), {"shrinkage": FRACTION}),
    "erasure.random_eraser": (spread_over(ji.erasure.random_eraser, width=4, rank=2), {
        "width": MANY, "rank": (*COUNT, 5), "seed": SEED}),
    "generate": (spread_over(
        ji.generate, model=M, tokens=PROMPTS, n_new=2, key=jax.random.key(0)), {
        "n_new": MANY, "temperature": NOT_NEGATIVE, "top_k": COUNT, "top_p": (0, *FRACTION),
        "stop": (-1, 99, 2**32), "pad": INDEX}),
    "handbuilt.Known.make": (lambda **o: known().make(**{"n": 2, "length": 6, **o}), {
        "n": MANY, "length": MANY, "seed": SEED}),
    "heads.pattern_scores": (
        spread_over(ji.heads.pattern_scores, model=M, tokens=PROMPTS,
                    pattern=ji.heads.previous_token),
        {"batch": COUNT}),
    "heads.repeated_tokens": (spread_over(ji.heads.repeated_tokens, model=M, length=4), {
        "n": MANY, "length": (*MANY, 18), "seed": SEED, "bos": INDEX}),
    "init": (spread_over(ji.init, config=M.config, key=jax.random.key(0)), {"scale": NOT_NEGATIVE}),
    "interchange.interchange_accuracy": (
        spread_over(ji.interchange.interchange_accuracy, **PAIRS, layer=1, position=2), {
            "layer": INDEX, **RUN}),
    "interchange.interchange_task": (sums, {"n": MANY, "changed": FRACTION, "seed": SEED}),
    "interchange.random_basis": (spread_over(ji.interchange.random_basis, width=4, rank=2), {
        "width": MANY, "rank": (*FROM_0, 5), "seed": SEED}),
    "interchange.sweep_das": (spread_over(ji.interchange.sweep_das, **PAIRS), {
        **das_options(), "layers": INDICES, "positions": INDICES}),
    "interchange.train_das": (das, {**das_options(), "layer": INDEX}),
    "lens.fit_jacobian": (spread_over(ji.lens.fit_jacobian, **BATCHES), {"chunk": COUNT}),
    "lens.patchscope": (
        spread_over(ji.lens.patchscope, model=M, source=PROMPTS, at=1, target=OTHER, into=1),
        {"n_new": MANY, "layers": INDICES, "into_layers": INDICES}),
    "lens.published_optimizer": (ji.lens.published_optimizer, {"steps": STEPS}),
    "lens.read": (spread_over(ji.lens.read, model=M, tokens=PROMPTS), {
        "top": (*COUNT, 99), "batch": COUNT}),
    "lens.train_tuned": (spread_over(ji.lens.train_tuned, **BATCHES, steps=1), {
        "steps": STEPS, "rows": COUNT, "seed": SEED}),
    "neurons.top_examples": (spread_over(ji.neurons.top_examples, **BATCHES), {
        "k": MANY, "layers": INDICES, "window": ((-1, 1), (1, 1.5), (1, math.nan), (10**12, 1))}),
    "neurons.written_tokens": (spread_over(ji.neurons.written_tokens, model=M, layer=1), {
        "layer": INDEX, "k": (*COUNT, 99)}),
    "patch": (spread_over(ji.patch, **TWINS), {**RUN, **GRID}),
    "patch_pairs": (spread_over(ji.patch_pairs, **TWINS), {"seed": SEED, **RUN, **GRID}),
    "patch_stream": (
        spread_over(ji.patch_stream, model=M, batches=[], out="/nowhere/at/all"), {"total": COUNT}),
    "plan": (swept(ji.plan), {"chunk": COUNT, "memory": COUNT}),
    "probe_and_erase": (
        spread_over(ji.probe_and_erase, **MORE, labels=np.arange(12) % 2), {
            "position": (99, -99, 1.5), "layers": INDICES, "placebos": FROM_0_MANY,
            "penalty": POSITIVE, "seed": SEED, "batch": COUNT}),
    "probes.fit_logistic": (
        spread_over(ji.probes.fit_logistic, X=X.astype(np.float32), targets=LABELS,
                    weights=np.ones((1, 30), np.float32), penalties=[0.1], n_classes=2), {
            "n_classes": (1, *COUNT), "max_steps": MANY, "tolerance": NOT_NEGATIVE}),
    "probes.make_splits": (spread_over(ji.probes.make_splits, labels=LABELS), {
        "n_splits": MANY, "shares": ((0, 1, 1), (1, math.nan, 1), (1, 1)), "seed": SEED}),
    "probes.probe": (spread_over(ji.probes.probe, X=X, labels=LABELS), {
        "splits": MANY, "seed": SEED}),
    "probes.sparse_probe": (spread_over(ji.probes.sparse_probe, X=X, labels=LABELS, ks=[1]), {
        "ks": ([0], [99], [1.5], [math.nan]), "splits": MANY, "seed": SEED}),
    "report.View": (spread_over(report.View, page="<p>"), {"height": COUNT}),
    "report.lens_table": (
        lambda **o: report.lens_table(reading(), **o), {"prompt": INDEX}),
    "report.spread": (lambda **o: report.spread(result(), **o), {"k": COUNT}),
    "report.summarize": (lambda **o: report.summarize(result(), **o), {
        "k": FROM_0, "samples": MANY, "seed": SEED}),
    "report.summary_table": (lambda **o: report.summary_table(result(), **o), {"k": FROM_0}),
    "run_layers": (spread_over(ji.run_layers, model=M, x=np.ones((2, 7, 8)), tokens=PROMPTS), {
        "start": (-1, 4), "stop": (-1, 4)}),
    "sae.DictionaryConfig": (spread_over(sae.DictionaryConfig, d_in=4, n_features=8), {
        "d_in": MANY, "n_features": MANY, "n_layers": MANY, "d_out": FROM_0_MANY,
        "bandwidth": POSITIVE, "layers": INDICES[:1] + INDICES[2:],
        "prefixes": ((0, 8), (1.5, 8), (9,))}),
    "sae.Hyperparameters": (lambda **o: sae.Hyperparameters(**o).spread(), {
        **dict.fromkeys(("learning_rate", "sparsity", "target_l0", "k"), NOT_NEGATIVE),
        "seed": SEED}),
    "sae.Spelling.fit": (spelled, {
        "min_words": COUNT, "min_f1": FRACTION, "min_letters": FROM_0, "seed": SEED}),
    "sae.Store.batches": (lambda **o: next(store().batches(**{"size": 2, **o})), {
        "size": (*COUNT, 99), "seed": SEED, "epochs": COUNT, "mix": COUNT, "longest": POSITIVE,
        "shard": ((1, 1), (-1, 2), (0.5, 1))}),
    "sae.Store.chunk": (lambda **o: store().chunk(**o), {"number": INDEX}),
    "sae.Store.norm_limit": (lambda **o: store().norm_limit(**o), {"times": POSITIVE}),
    "sae.Synthetic.__call__": (
        lambda **o: sae.synthetic(16, 8, rank=2, depth=1)(jax.random.key(0), **o), {"n": MANY}),
    "sae.TrainingConfig": (spread_over(sae.TrainingConfig, steps=4), {
        "steps": STEPS, **dict.fromkeys(
            ("warmup", "decay", "sparsity_warmup", "anneal", "threshold_decay"), FRACTION),
        "exponent": (0, *FRACTION), "dead_after": FROM_0, "k_aux": FROM_0, "slots": FROM_0,
        **dict.fromkeys(("decoder_norm", "auxk", "threshold", "clip"), NOT_NEGATIVE),
        "b1": (1, *FRACTION), "b2": (1, *FRACTION)}),
    "sae.absorption_rates": (absorbed, {
        "cosine": (-2, 2, *REAL), "part_cosine": (-2, 2, *REAL), "share": FRACTION, "most": COUNT}),
    "sae.attribute_features": (on_features(sae.attribute_features, metric=DIFF), {
        "steps": MANY, "features": INDICES}),
    "sae.batches": (
        lambda **o: next(sae.batches(sae.synthetic(16, 8, rank=2, depth=1), **{"n": 2, **o})),
        {"n": MANY, "seed": SEED, "begin": FROM_0}),
    "sae.evaluate_feature_circuit": (
        on_dictionaries(sae.evaluate_feature_circuit, circuit=None), {"batch": COUNT}),
    "sae.faithfulness": (on_dictionaries(sae.faithfulness, circuit=None), {"batch": COUNT}),
    "sae.feature_circuit": (
        on_dictionaries(sae.feature_circuit, node_threshold=0.1, edge_threshold=0.1), {
            "node_threshold": NOT_NEGATIVE, "edge_threshold": NOT_NEGATIVE, "steps": MANY,
            "batch": COUNT}),
    "sae.feature_edges": (on_dictionaries(sae.feature_edges, nodes=None), {
        "steps": MANY, "batch": COUNT}),
    "sae.feature_effects": (on_features(sae.feature_effects), {
        "features": INDICES, "factors": NUMBERS, "batch": COUNT}),
    "sae.feature_nodes": (on_dictionaries(sae.feature_nodes), {"steps": MANY, "batch": COUNT}),
    "sae.first_letter": (
        lambda **o: sae.first_letter(M, dictionary(), words(), words=[" ab"], **o), {
            "examples": FROM_0_MANY, **SPELLING, "seed": SEED, "batch": COUNT, "min_words": COUNT,
            "min_f1": FRACTION, "min_letters": FROM_0}),
    "sae.fit_spelling": (
        lambda **o: sae.fit_spelling(M, words(), **{"site": "resid_post", "layer": 1, **o}),
        {"layer": INDEX, "examples": FROM_0_MANY, "seed": SEED, "batch": COUNT}),
    "sae.geometric_median": (spread_over(sae.geometric_median, x=X), {
        "steps": STEPS, "within": NOT_NEGATIVE}),
    "sae.harvest": (
        lambda **o: sae.harvest(M, dictionary().config, [PROMPTS], **o), {"seed": SEED}),
    "sae.loss": (
        lambda **o: sae.loss(
            dictionary(), jnp.ones((2, 8)), jnp.ones((2, 8)), sae.LossCoefficients(), **o),
        {"k_aux": FROM_0}),
    "sae.nearest": (lambda **o: sae.nearest(dictionary(), **o), {
        "features": INDICES, "k": (*COUNT, 99)}),
    "sae.select_nodes": (lambda **o: sae.select_nodes(None, **o), {"threshold": NOT_NEGATIVE}),
    "sae.split_features": (split, SPELLING),
    "sae.study_features": (
        lambda **o: sae.study_features(M, dictionary(), [PROMPTS], **o), {
            "features": INDICES, "k": MANY, "intervals": FROM_0_MANY, "sample": MANY,
            "window": ((-1, 1), (1, 1.5), (1, math.nan)), "bins": MANY, "nearest": FROM_0_MANY,
            "written": FROM_0_MANY, "seed": SEED}),
    "sae.synthetic": (spread_over(sae.synthetic, n_features=16, width=8, rank=2, depth=2), {
        "n_features": MANY, "width": MANY, "roots": FROM_0, "branch": COUNT, "depth": COUNT,
        "exponent": NOT_NEGATIVE, "probabilities": ((0, 0.5), (0.1, 1), (0.1, math.nan)),
        "rank": COUNT, "correlation": FRACTION, "exclusive": FRACTION, "bias": REAL, "seed": SEED}),
    "sae.top_examples": (
        lambda **o: sae.top_examples(M, dictionary(), [PROMPTS], **o), {
            "features": INDICES, "k": MANY, "window": ((-1, 1), (1, 1.5)), "seed": SEED}),
    "sae.train": (
        lambda **o: sae.train(
            dictionary().config, [], sae.TrainingConfig(4), sae.Hyperparameters(sparsity=1.0), **o),
        {"save_every": COUNT, "log_every": COUNT}),
    "sae.written_tokens": (lambda **o: sae.written_tokens(M, dictionary(), **o), {
        "features": INDICES, "k": (*COUNT, 99)}),
    "scrub": (spread_over(ji.scrub, **ONE, hypothesis={}), {
        "draws": MANY, "seed": SEED, "batch": COUNT}),
    "stats.bootstrap": (lambda **o: ji.stats.bootstrap(result(), **o), {
        "level": INSIDE, "n": MANY, "seed": SEED}),
    "stats.paired_permutation": (lambda **o: ji.stats.paired_permutation(result(), **o), {
        "n": MANY, "seed": SEED}),
    "steer": (direction_named, {
        "coefficients": NUMBERS, "layers": INDICES, "placebos": FROM_0_MANY, "seed": SEED,
        "batch": COUNT}),
    "steering.continuations": (
        lambda **o: ji.steering.continuations(M, PROMPTS, direction(), **{
            "layer": 1, "coefficients": [1.0], "n_new": 1, **o}),
        {"layer": INDEX, "coefficients": NUMBERS, "n_new": MANY}),
    "steering.mean_norms": (spread_over(ji.steering.mean_norms, model=M, tokens=PROMPTS), {
        "batch": COUNT}),
    "steering.side_effects": (
        lambda **o: ji.steering.side_effects(M, PROMPTS, {"d": direction()}, **o), {
            "coefficients": NUMBERS, "layers": INDICES, "placebos": FROM_0_MANY, "seed": SEED}),
    "superposition.phase_diagram": (
        spread_over(ji.superposition.phase_diagram, densities=[0.5], importances=[1.0], steps=1), {
            "n_features": (1, *MANY), "n_hidden": MANY, "seeds": MANY, "seed": SEED,
            "densities": POSITIVES, "importances": POSITIVES}),
    "superposition.train": (densities, {
        "n_hidden": MANY, "steps": STEPS, "batch": MANY, "learning_rate": POSITIVE}),
    "sweep": (swept(ji.sweep), {"chunk": COUNT, "memory": COUNT}),
    "tasks.docstring": task(ji.tasks.docstring),
    "tasks.factual_recall": task(ji.tasks.factual_recall),
    "tasks.gendered_pronouns": task(ji.tasks.gendered_pronouns),
    "tasks.greater_than": task(ji.tasks.greater_than),
    "tasks.ioi": task(ji.tasks.ioi),
    "tasks.subject_verb_agreement": task(ji.tasks.subject_verb_agreement),
    "tasks.induction": (lambda **o: ji.tasks.induction(words(), **o), {
        "n": MANY, "seed": SEED, "length": (1, *MANY)}),
    "tasks.multiple_choice": (lambda **o: ji.tasks.multiple_choice(words(), **o), {
        "n": MANY, "seed": SEED, "choices": (0, 5, 2.5, math.nan, "3"), "shots": FROM_0_MANY}),
    "trace_causes": (spread_over(ji.trace_causes, **ONE, subject=[1, 1]), {
        "window": COUNT, "noise": POSITIVE, "samples": MANY, "seed": SEED, **RUN, **GRID}),
    "training.train": (
        lambda **o: ji.training.train(M, lambda step: None, None, None, **{"steps": 2, **o}), {
            "steps": STEPS, "save_every": COUNT, "keep": ([-1], [1.5], [math.nan], [99]),
            "log_every": COUNT}),
}  # fmt: skip

# Numeric parameters that are in no entry, and why.
_RECORD = "a field of a record that the library makes, or of a state that it hands on"
_SPEC = "part of the description of a world, given as a constant"
EXEMPT = {
    "Card": _RECORD,
    "Claim.agreement": "found by `Claim.rerun`",
    "Direction.__getitem__.layer": "an index as NumPy takes it, with its errors",
    "Frame.take.axis": "an axis that the site fixes",
    "Ledger": _RECORD,
    "Plan": _RECORD,
    "Task.seed": _RECORD,
    "Tokenizer": "ids of the tokenizer's own vocabulary: tests/test_tokens.py",
    "algorithmic.boards.Game.black": _SPEC,
    "algorithmic.boards.Game.white": _SPEC,
    "circuits.Graph": "the fields of a graph: tests/circuits/test_graph.py",
    "claims.Found": _RECORD,
    "claims.Needs": _RECORD,
    "interchange.InterchangeTask": _RECORD,
    "interchange.interchange_task.roles": "a function",
    "interchange.interchange_accuracy.head": "with sites of heads: tests/test_interchange.py",
    "interchange.sweep_das.heads": "with sites of heads: tests/test_das.py",
    "interchange.train_das.head": "with sites of heads: tests/test_das.py",
    "neurons.written_tokens.neurons": "numbers of neurons: tests/test_neurons.py",
    "probes.Splits.__getitem__.split": "an index as NumPy takes it, with its errors",
    "sae.LossCoefficients": "what `TrainingConfig.coefficients` makes, traced",
    "sae.Spelling.accuracy": _RECORD,
    "sae.Spelling.measure": "in `sae.split_features` and `sae.absorption_rates`",
    "sae.Store.rows": _RECORD,
    "sae.Synthetic.depth": _RECORD,
    "sae.Synthetic.groups": _RECORD,
    "sae.Trained": _RECORD,
    "sae.scale_features.factor": "an amount of any shape: tests/sae/test_sae_edits.py",
    "scrubbing.Hypothesis": _RECORD,
    "ship": "what a card records",
    "stats.paired_permutation.b": "a value of any shape that is compared with",
    "training.Trained": _RECORD,
}
