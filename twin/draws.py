"""Luck as a function of what it happens to, never of the order in which things happen.

A draw is the hash of a seed and a key, such as ("reservation", job id). Two policies that act on
one world therefore meet the same luck: changing capacity or price shifts no draw. Hashing one key
takes about a microsecond, a hundredth of building a generator for it.
"""

import hashlib
from math import exp, log
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

_STANDARD: Final = NormalDist()
_TINY: Final = 2.0**-54

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]


def hash64(*key: str | int) -> int:
    """Return 64 bits derived from a key."""
    data = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def uniform(*key: str | int) -> float:
    """Return a number in (0, 1) derived from a key."""
    return hash64(*key) / 2.0**64 * (1 - 2 * _TINY) + _TINY


def normal(*key: str | int) -> float:
    """Return a standard normal number derived from a key."""
    return _STANDARD.inv_cdf(uniform(*key))


def lognormal(median: float, sigma: float, *key: str | int) -> float:
    """Return a lognormal number with this median and log standard deviation."""
    return exp(log(median) + sigma * normal(*key))


def generator(*key: str | int) -> np.random.Generator:
    """Return a generator for a key that needs many draws, such as one hour's arrivals."""
    return np.random.Generator(np.random.Philox(key=hash64(*key)))


def uniform_grid(bases: Hashes, columns: int, salt: int) -> Floats:
    """Return uniforms in [0, 1), one row per base hash; `salt` names the field and the instant.

    The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014).
    """
    offsets = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x: Hashes = bases[:, None] + offsets[None, :] + np.uint64(hash64(salt))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
