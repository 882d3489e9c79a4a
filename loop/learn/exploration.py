"""How TD3 tries out what it would not do: some rows hardly, some hard, and none by a flicker.

Growth is done at once and undone a quarter of an hour later, so noise that is drawn anew at every
tick would keep all pools too large, and a policy would never see where it is going to live. Here a
quarter of the rows does what the policy wants and the others stray from it further and further, for
minutes at a time.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.noise import VectorizedActionNoise

SCALES: Final = (1.0, 0.0, 0.5, 0.25)
"""Of neighbouring rows, over and over; prime to the pools of a world in any usual fleet."""
MEMORY_TICKS: Final = 8.0


class RowNoise(VectorizedActionNoise):
    """Normal noise that fades over `MEMORY_TICKS`, of another scale for each row."""

    def __init__(self, size: float, rows: int, actions: int) -> None:
        """Make noise of (rows, actions) whose largest standard deviation is `size`."""
        self._scale: Final = size * np.resize(SCALES, rows)[:, None]
        self._kept: Final = float(np.exp(-1.0 / MEMORY_TICKS))
        self._noise: NDArray[np.float64] = np.zeros((rows, actions))

    def __call__(self) -> NDArray[np.float32]:
        """Return the noise of the next tick, drawn from numpy's global generator as SB3's is."""
        drawn = np.random.normal(size=self._noise.shape)
        self._noise = self._kept * self._noise + np.sqrt(1.0 - self._kept**2) * drawn
        return (self._scale * self._noise).astype(np.float32)

    def reset(self, indices: object = None) -> None:
        """Begin anew, for all rows alike: they end their episodes together."""
        self._noise = np.zeros_like(self._noise)
