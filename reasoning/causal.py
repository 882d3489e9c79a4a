"""Runs DoWhy: splits a symptom's departure over the disturbances that may have caused it.

The only module that imports DoWhy, and it runs in a worker process of its own, because DoWhy
draws from the process-wide generators, shows progress bars and cannot be interrupted. It knows
columns and edges, nothing of fleets.

Minutes without trouble hardly move a clock or a link, so a plain fit on them says nothing about
the effect of a large move. Each linear mechanism is therefore shrunk towards the slope that
physics gives: the prior counts as `PRIOR_ROWS` rows in which the cause moved by its scale.
"""

import hashlib
import random  # noqa: TID251 - DoWhy draws from it; its state is put back
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import msgspec
import networkx as nx
import numpy as np
import pandas as pd
from dowhy import gcm
from dowhy.gcm.anomaly_scorer import AnomalyScorer
from dowhy.gcm.ml.prediction_model import PredictionModel
from dowhy.gcm.shapley import (
    ShapleyApproximationMethods,
    ShapleyConfig,
)
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from gpuloop.reasoning.analysis import Analysis, Attribution, Edge, Share

PRIOR_ROWS: Final = 30.0
DISTRIBUTION_SAMPLES: Final = 500
PERMUTATIONS: Final = 10
MAX_CACHED_MODELS: Final = 32

Array = NDArray[np.float64]


class ShrunkLinear(PredictionModel):  # type: ignore[misc]
    """Least squares around a prior: slope = argmin |y - Xb|^2 + prior rows x |scale (b - b0)|^2."""

    def __init__(self, prior: Array, scale: Array) -> None:
        self._prior, self._scale = prior, scale
        self._slope, self._at, self._level = prior, np.zeros_like(prior), 0.0

    def fit(self, X: Array, Y: Array) -> None:
        """Fit slopes and level on normal rows."""
        x, y = X.astype(float), Y.astype(float).ravel()
        self._at, self._level = x.mean(axis=0), float(y.mean())
        x, y = x - self._at, y - self._level
        weight = np.diag(PRIOR_ROWS * self._scale**2)
        self._slope = self._prior + np.linalg.solve(x.T @ x + weight, x.T @ (y - x @ self._prior))

    def predict(self, X: Array) -> Array:
        """Return one column of predictions."""
        predicted: Array = self._level + (X.astype(float) - self._at) @ self._slope
        return predicted.reshape(-1, 1)

    def clone(self) -> Self:
        """Return an unfitted copy."""
        return type(self)(self._prior, self._scale)


class _Departure(AnomalyScorer):  # type: ignore[misc]
    """The signed distance from the normal mean, so that shares add up in the target's units."""

    def fit(self, X: Array) -> None:
        self._mean = float(X.mean())

    def score(self, X: Array) -> Array:
        departure: Array = X.astype(float).ravel() - self._mean
        return departure


class CausalModels:
    """Fitted structural models, kept by what they were fitted on, so that a cache never lies."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Any] = OrderedDict()
        # Its lock between processes would outlive this one when it is killed at a deadline.
        tqdm.set_lock(threading.RLock())
        gcm.config.disable_progress_bars()
        gcm.config.set_default_n_jobs(1)

    def attribute(self, analysis: Analysis) -> Attribution:
        """Return how much each column's own disturbance moved the target; same input, same answer.

        Raises:
            ValueError: the graph has a cycle or the data hold a missing value.

        """
        observed = analysis.matrix(analysis.anomalous).mean(axis=0, keepdims=True)
        if np.isnan(observed).any() or np.isnan(analysis.matrix(analysis.normal)).any():
            raise ValueError(f"missing values in the analysis of {analysis.target}")
        with _seeded(analysis.seed):
            model = self._fitted(analysis)
            contributions = gcm.attribute_anomalies(
                model,
                analysis.target,
                pd.DataFrame(observed, columns=list(analysis.columns)),
                anomaly_scorer=_Departure(),
                attribute_mean_deviation=True,
                num_distribution_samples=DISTRIBUTION_SAMPLES,
                shapley_config=ShapleyConfig(
                    approximation_method=ShapleyApproximationMethods.PERMUTATION,
                    num_permutations=PERMUTATIONS,
                    n_jobs=1,
                ),
            )
        target = analysis.columns.index(analysis.target)
        normal = analysis.matrix(analysis.normal)[:, target].mean()
        return Attribution(
            departure=float(observed[0, target] - normal),
            shares=tuple(Share(name, float(contributions[name][0])) for name in analysis.columns),
        )

    def _fitted(self, analysis: Analysis) -> Any:
        """Return the model of a graph on its normal rows."""
        parts = (analysis.columns, analysis.edges, analysis.scale, analysis.normal)
        key = hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()
        model = self._models.get(key)
        if model is None:
            model = _model(analysis)
            gcm.fit(
                model,
                pd.DataFrame(analysis.matrix(analysis.normal), columns=list(analysis.columns)),
            )
            self._models[key] = model
            if len(self._models) > MAX_CACHED_MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return model


def _model(analysis: Analysis) -> Any:
    """Return the unfitted model: empirical roots, linear mechanisms with additive noise."""
    graph = nx.DiGraph()
    graph.add_nodes_from(analysis.columns)
    graph.add_edges_from((edge.cause, edge.effect) for edge in analysis.edges)
    scale = dict(zip(analysis.columns, analysis.scale, strict=True))
    model = gcm.InvertibleStructuralCausalModel(graph)
    into: dict[str, list[Edge]] = {name: [] for name in analysis.columns}
    for edge in analysis.edges:
        into[edge.effect].append(edge)
    for name, edges in into.items():
        if not edges:
            model.set_causal_mechanism(name, gcm.EmpiricalDistribution())
            continue
        edges.sort(key=lambda edge: edge.cause)  # DoWhy passes parents in sorted order.
        prior = np.array([edge.slope for edge in edges])
        mechanism = ShrunkLinear(prior, np.array([scale[edge.cause] for edge in edges]))
        model.set_causal_mechanism(name, gcm.AdditiveNoiseModel(mechanism))
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the process-wide generators that DoWhy draws from, and put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
