"""Sparse dictionaries: SAEs, transcoders, crosscoders; trained, measured, put into the model."""

from jaxinterp.sae.absorption import absorption_rates, split_features
from jaxinterp.sae.circuits import feature_circuit, feature_edges
from jaxinterp.sae.dictionary import Code, Dictionary, DictionaryConfig, Parameters, decode, encode
from jaxinterp.sae.edits import (
    FeatureEdit,
    Splice,
    add_to_features,
    attribute_features,
    scale_features,
    set_features,
)
from jaxinterp.sae.exchange import Exchange, evaluate_feature_circuit, faithfulness
from jaxinterp.sae.features import feature_effects, nearest, top_examples, written_tokens
from jaxinterp.sae.files import load, save
from jaxinterp.sae.harvest import Harvest, harvest, values_at
from jaxinterp.sae.losses import LossCoefficients, Parts, loss
from jaxinterp.sae.metrics import detection, loss_recovered, reconstruction, recovery
from jaxinterp.sae.nodes import feature_nodes, select_nodes
from jaxinterp.sae.run import Trained, train
from jaxinterp.sae.scaling import Scaling, fold, geometric_median
from jaxinterp.sae.scaling import measure as measure_scaling
from jaxinterp.sae.spelling import Spelling, first_letter, fit_spelling
from jaxinterp.sae.store import Store, harvest_to, open_store
from jaxinterp.sae.study import study_features
from jaxinterp.sae.synthetic import Synthetic, batches, synthetic
from jaxinterp.sae.training import (
    Given,
    Hyperparameters,
    State,
    TrainingConfig,
    advance,
    start,
    update,
)

__all__ = [
    "Code", "Dictionary", "DictionaryConfig", "Exchange", "FeatureEdit", "Given", "Harvest",
    "Hyperparameters", "LossCoefficients", "Parameters", "Parts", "Scaling", "Spelling",
    "Splice", "State", "Store", "Synthetic", "Trained", "TrainingConfig", "absorption_rates",
    "add_to_features", "advance", "attribute_features", "batches", "decode", "detection",
    "encode", "evaluate_feature_circuit", "faithfulness", "feature_circuit", "feature_edges",
    "feature_effects", "feature_nodes", "first_letter", "fit_spelling", "fold",
    "geometric_median", "harvest", "harvest_to", "load", "loss", "loss_recovered",
    "measure_scaling", "nearest", "open_store", "reconstruction", "recovery", "save",
    "scale_features", "select_nodes", "set_features", "split_features", "start",
    "study_features", "synthetic", "top_examples", "train", "update", "values_at",
    "written_tokens",
]  # fmt: skip
