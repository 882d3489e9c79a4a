"""What networks see and say: the spaces of one pool, and the frozen scaling of observations."""

from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.policy import FEATURE_NAMES

Space = gymnasium.Space[Any]

LEAST_SCALE: Final = 0.05
CONSTANT_BELOW: Final = 1e-3
"""A feature with less spread than this is as good as constant: nothing can be learned from it."""

BLIND_SCALE: Final = 1e30
"""The scale of a constant feature: whatever it is, the actor sees 0 and is in its range.

Otherwise its weights would stay as they were drawn and speak up once the feature moves."""

CYCLIC: Final = tuple(
    index for index, name in enumerate(FEATURE_NAMES) if name.endswith(("_sin", "_cos"))
)
CYCLE_SPREAD: Final = round(0.5**0.5, 6)


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
    """Return the statistics of a set of observations, to be frozen with a policy.

    Constant features are blinded; the clock's are scaled by their whole cycles, because a set that
    covers half a day would put the rest of the week out of range.
    """
    mean, spread = observations.mean(axis=0), observations.std(axis=0)
    scale = np.where(spread < CONSTANT_BELOW, BLIND_SCALE, np.maximum(spread, LEAST_SCALE))
    mean[list(CYCLIC)], scale[list(CYCLIC)] = 0.0, CYCLE_SPREAD
    return Normaliser(
        mean=tuple(round(float(x), 6) for x in mean),
        scale=tuple(round(float(x), 6) for x in scale),
        clip=clip,
    )
