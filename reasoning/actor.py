"""Serving an actor: safetensors in, a numpy forward pass out, no torch and no pickle.

Weights come over the network, so shapes, size and every number are checked before first use.
Results are rounded to 1e-4: the last bits of a matrix product differ between CPUs, decisions must
not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import Flags, Floats

Weights = NDArray[np.float32]

MAX_WEIGHTS_BYTES: Final = 900_000
ACTION_DECIMALS: Final = 4
RANGE_SLACK: Final = 2.0
"""How many times the clip an observation may stray before the actor is not asked."""

MOST: Final = 1e30
"""Values in a forward pass stay below this, far from what a float32 can hold."""


class BadActor(ValueError):
    """Weights that do not follow their specification."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A deterministic actor: ReLU layers, tanh output, on normalised observations."""

    layers: tuple[tuple[Weights, Weights], ...]
    mean: Floats
    scale: Floats
    clip: float

    @classmethod
    def from_safetensors(cls, data: bytes, spec: ActorSpec, normaliser: Normaliser) -> "Actor":
        """Return the actor in `data`.

        Raises:
            BadActor: too large, not safetensors, a tensor missing, surplus, of another shape or
                not finite, or numbers so large that a forward pass could overflow.

        """
        if len(data) > MAX_WEIGHTS_BYTES:
            raise BadActor(f"{len(data)} bytes of weights, at most {MAX_WEIGHTS_BYTES}")
        try:
            tensors = load(data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise BadActor(f"not safetensors: {error}") from None
        sizes = (spec.observation_size, *spec.hidden, spec.action_size)
        layers = []
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            weight = _tensor(tensors, f"layer.{index}.weight", (outputs, inputs))
            layers.append((weight.T.copy(), _tensor(tensors, f"layer.{index}.bias", (outputs,))))
        if tensors:
            raise BadActor(f"unexpected tensors {sorted(tensors)[:4]}")
        mean, scale, clip = _statistics(normaliser, spec.observation_size)
        if _largest(layers, clip) > MOST:
            raise BadActor("a forward pass could overflow")
        return cls(tuple(layers), mean, scale, clip)

    def __call__(self, observations: Floats, decimals: int | None = ACTION_DECIMALS) -> Weights:
        """Return actions (n, k) in [-1, 1], float32, for observations (n, d)."""
        hidden = np.clip(self.deviation(observations), -self.clip, self.clip).astype(np.float32)
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        weight, bias = self.layers[-1]
        action: Weights = np.tanh(hidden @ weight + bias)
        return action if decimals is None else np.round(action, decimals)

    def deviation(self, observations: Floats) -> Floats:
        """Return observations in units of their training spread."""
        return (observations - self.mean) / self.scale

    def offsets(self, observations: Floats) -> Floats:
        """Return actions as `__call__` does, and none in rows that are out of range."""
        known: Flags = self.in_range(observations)
        offers: Floats = np.where(known[:, None], self(observations), 0.0)
        return offers

    def in_range(self, observations: Floats) -> Flags:
        """Return which rows (n,) are finite and not far from where the actor was trained."""
        limit = RANGE_SLACK * self.clip
        inside: Flags = np.all(np.abs(self.deviation(observations)) <= limit, axis=1)
        return inside


def _tensor(tensors: dict[str, NDArray[np.generic]], name: str, shape: tuple[int, ...]) -> Weights:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise BadActor(f"no tensor {name}")
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise BadActor(f"{name} is {tensor.dtype}{tensor.shape}, expected float32{shape}")
    values = tensor.astype(np.float32)
    if not np.isfinite(values).all():
        raise BadActor(f"{name} is not finite")
    return values


def _largest(layers: Sequence[tuple[Weights, Weights]], clip: float) -> float:
    """Return a bound of every sum of a forward pass, whatever is observed."""
    largest = bound = clip
    for weight, bias in layers:
        inputs = np.abs(weight.astype(np.float64)).sum(axis=0).max()
        bound = float(bound * inputs + np.abs(bias.astype(np.float64)).max())
        largest = max(largest, bound)
    return largest


def _statistics(normaliser: Normaliser, size: int) -> tuple[Floats, Floats, float]:
    mean, scale = np.array(normaliser.mean, float), np.array(normaliser.scale, float)
    if mean.shape != (size,) or scale.shape != (size,):
        raise BadActor(f"normaliser has {len(mean)} and {len(scale)} values, expected {size}")
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0.0).all()):
        raise BadActor("normaliser is not finite and positive")
    if not (np.isfinite(normaliser.clip) and normaliser.clip > 0.0):
        raise BadActor("the normaliser's clip is not positive")
    return mean, scale, float(normaliser.clip)
