"""Exploration strays by rows and for minutes, and is the same for the same seed."""

import numpy as np

from gpuloop.loop.learn.exploration import MEMORY_TICKS, SCALES, RowNoise


def drawn(ticks: int, *, seed: int = 0, rows: int = 4) -> np.ndarray:
    np.random.seed(seed)
    noise = RowNoise(0.4, rows, 2)
    return np.stack([noise() for _ in range(ticks)])


def test_each_row_strays_as_far_as_its_scale_and_one_not_at_all():
    found = drawn(8_000).std(axis=(0, 2))
    np.testing.assert_allclose(found, 0.4 * np.array(SCALES), rtol=0.15, atol=1e-9)
    assert not drawn(10)[:, SCALES.index(0.0)].any()


def test_a_row_strays_for_minutes_and_not_by_a_flicker():
    path = drawn(8_000)[:, 0, 0]
    kept = np.corrcoef(path[:-1], path[1:])[0, 1]
    assert abs(kept - np.exp(-1.0 / MEMORY_TICKS)) < 0.03


def test_an_environment_of_one_pool_is_explored_too():
    assert drawn(100, rows=1).std() > 0.1


def test_the_noise_after_a_new_beginning_is_that_of_its_seed():
    noise = RowNoise(0.4, 4, 2)
    noise()
    noise.reset()
    np.random.seed(3)
    np.testing.assert_array_equal(noise(), drawn(1, seed=3)[0])
