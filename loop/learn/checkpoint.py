"""A training run on disk, between two episodes: go on from it as if nothing had happened.

Tensors and numbers only, read back without unpickling anything else. What a run is (configuration,
seed, versions) is kept beside them as a digest; a file of another run is not gone on from.
"""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from gpuloop.loop.learn.trainer import Trainer

BUFFERED: Final = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save(path: Path, trainer: Trainer, *, episode: int, run: str) -> None:
    """Write everything that goes on training depends on; a crash leaves the file before it."""
    model, buffer = trainer.model, trainer.buffer
    stored = buffer.size()
    kept: dict[str, Any] = {
        "run": run,
        "episode": episode,
        "updates": model._n_updates,
        "timesteps": model.num_timesteps,
        "networks": model.policy.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimisers": {name: one.state_dict() for name, one in trainer.optimisers().items()},
        "entropy": trainer.entropy(),
        "buffer": {
            name: torch.as_tensor(getattr(buffer, name)[:stored].copy()) for name in BUFFERED
        },
        "place": [buffer.pos, int(buffer.full)],
        "priorities": torch.as_tensor(buffer.priorities()),
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(),
    }
    if torch.cuda.is_available():
        kept["cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(kept, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def restore(path: Path, trainer: Trainer, *, run: str) -> int | None:
    """Load a run into a trainer that was made alike; return the next episode, None if no such run.

    A file that cannot be read, or is of another run, is left alone and training begins anew.
    """
    try:
        kept = torch.load(path, map_location=trainer.model.device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError):
        return None
    if not isinstance(kept, dict) or kept.get("run") != run:
        return None
    model, buffer = trainer.model, trainer.buffer
    model.policy.load_state_dict(kept["networks"])
    trainer.averaged.load_state_dict(kept["averaged"])
    for name, optimiser in trainer.optimisers().items():
        optimiser.load_state_dict(kept["optimisers"][name])
    trainer.set_entropy(kept["entropy"])
    for name, values in kept["buffer"].items():
        getattr(buffer, name)[: len(values)] = values.cpu().numpy()
    buffer.pos, buffer.full = kept["place"][0], bool(kept["place"][1])
    buffer.set_priorities(kept["priorities"].cpu().numpy())
    model._n_updates, model.num_timesteps = kept["updates"], kept["timesteps"]
    torch.set_rng_state(kept["torch"].cpu())
    if "cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["cuda"].cpu())
    _set_numpy_state(kept["numpy"])
    return int(kept["episode"])


def _numpy_state() -> dict[str, Any]:
    """Return the state of numpy's global generator, from which exploration and replay draw."""
    _, keys, place, has_normal, normal = np.random.get_state(legacy=True)
    return {
        "keys": torch.as_tensor(np.asarray(keys, np.int64)),
        "place": int(place),
        "has_normal": int(has_normal),
        "normal": float(normal),
    }


def _set_numpy_state(kept: dict[str, Any]) -> None:
    keys = kept["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, kept["place"], kept["has_normal"], kept["normal"]))
