"""Tools for the latents of a trained run, as functions that take a TextVAE: moves, vectors, neighbours, tables."""

from textvae.toolbox.anomalies import Anomaly, AnomalyDetector, token_nats
from textvae.toolbox.density_paths import Aggregate, interpolate, path_along
from textvae.toolbox.directions import AttributeVector, analogies, analogy, attribute_vector, direction, shift
from textvae.toolbox.labels import LabelledPrior, fit_by_label
from textvae.toolbox.moves import along_dimension, around, mix, mix_latents, perturb, traverse
from textvae.toolbox.neighbours import Found, Neighbours, nearest
from textvae.toolbox.success import Classifier, Success, judge_by_grammar, success
from textvae.toolbox.table import rows_of, write_latents
from textvae.toolbox.unknown import unknown_words

__all__ = [
    "Aggregate",
    "Anomaly",
    "AnomalyDetector",
    "AttributeVector",
    "Classifier",
    "Found",
    "LabelledPrior",
    "Neighbours",
    "Success",
    "along_dimension",
    "analogies",
    "analogy",
    "around",
    "attribute_vector",
    "direction",
    "fit_by_label",
    "interpolate",
    "judge_by_grammar",
    "mix",
    "mix_latents",
    "nearest",
    "path_along",
    "perturb",
    "rows_of",
    "shift",
    "success",
    "token_nats",
    "traverse",
    "unknown_words",
    "write_latents",
]
