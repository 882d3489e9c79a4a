"""What networks see and say: the spaces of one pool, and the frozen scaling of observations."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE
from gpuloop.schemas.messages.learning import Normaliser

Space = gymnasium.Space[Any]


def action_box() -> Space:
    """Return the space of one pool's offsets, in delta limits."""
    return Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)


def observation_box(clip: float = np.inf) -> Space:
    """Return the space of one pool's observation."""
    return Box(-clip, clip, (OBSERVATION_SIZE,), np.float32)


class Scaling:
    """Observations as networks see them: centred, scaled, clipped, float32."""

    def __init__(self, normaliser: Normaliser) -> None:
        """Hold a normaliser's statistics as arrays."""
        self.clip = normaliser.clip
        self._mean = np.asarray(normaliser.mean, np.float32)
        self._scale = np.asarray(normaliser.scale, np.float32)

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, features) observations scaled."""
        scaled = (observations - self._mean) / self._scale
        return np.asarray(np.clip(scaled, -self.clip, self.clip), np.float32)


def fit_normaliser(observations: NDArray[np.float32], *, clip: float = 5.0) -> Normaliser:
    """Return the statistics of a set of observations, to be frozen with a policy."""
    scale = observations.std(axis=0)
    return Normaliser(
        mean=tuple(round(float(x), 6) for x in observations.mean(axis=0)),
        scale=tuple(round(float(max(x, 0.05)), 6) for x in scale),
        clip=clip,
    )
