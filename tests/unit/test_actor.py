"""Serving an actor: as torch computes it, and nothing that is not as described."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from gpuloop.reasoning.actor import MAX_WEIGHTS_BYTES, Actor, BadActor
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES

D, K = len(FEATURE_NAMES), len(DIMENSIONS)
SPEC = ActorSpec(observation_size=D, action_size=K, hidden=(32, 16))
NORMALISER = Normaliser(mean=tuple(np.linspace(-1, 1, D)), scale=(0.5,) * D, clip=5.0)


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(D, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, K),
        torch.nn.Tanh(),
    )


def tensors(model: torch.nn.Sequential) -> dict[str, np.ndarray]:
    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    return {
        f"layer.{index}.{name}": getattr(layer, name).detach().numpy()
        for index, layer in enumerate(linear)
        for name in ("weight", "bias")
    }


@pytest.mark.parametrize("seed", range(5))
def test_numpy_serves_what_torch_trained(seed: int):
    model = network(seed)
    actor = Actor.from_safetensors(save(tensors(model)), SPEC, NORMALISER)
    seen = np.random.Generator(np.random.PCG64(seed)).normal(0, 3, (64, D))
    scaled = np.clip((seen - np.array(NORMALISER.mean)) / 0.5, -5, 5).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(scaled)).numpy()
    action = actor(seen)
    assert action.dtype == np.float32
    unrounded = actor(seen, decimals=None)
    np.testing.assert_allclose(unrounded, expected, atol=1e-5)
    np.testing.assert_allclose(action, expected, atol=5e-5 + 1e-5)
    np.testing.assert_array_equal(action, np.round(action, 4))


def test_a_row_is_served_alike_alone_and_in_company():
    actor = Actor.from_safetensors(save(tensors(network())), SPEC, NORMALISER)
    seen = np.random.Generator(np.random.PCG64(1)).normal(0, 1, (8, D))
    np.testing.assert_array_equal(actor(seen)[3], actor(seen[3:4])[0])


def spoilt(**changes: np.ndarray | None) -> bytes:
    content = tensors(network()) | {name.replace("_", "."): of for name, of in changes.items()}
    return save({name: of for name, of in content.items() if of is not None})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors at all",
        spoilt(layer_0_bias=None),
        spoilt(layer_0_bias=np.zeros(31, np.float32)),
        spoilt(layer_0_bias=np.zeros(32, np.float64)),
        spoilt(layer_2_bias=np.full(K, np.nan, np.float32)),
        spoilt(layer_7_bias=np.zeros(1, np.float32)),
        b"x" * (MAX_WEIGHTS_BYTES + 1),
    ],
)
def test_weights_that_are_not_as_described_are_refused(data: bytes):
    with pytest.raises(BadActor):
        Actor.from_safetensors(data, SPEC, NORMALISER)


@pytest.mark.parametrize(
    "normaliser",
    [
        Normaliser(mean=(0.0,), scale=(1.0,), clip=5.0),
        Normaliser(mean=(0.0,) * D, scale=(0.0,) * D, clip=5.0),
        Normaliser(mean=(float("nan"),) * D, scale=(1.0,) * D, clip=5.0),
        Normaliser(mean=(0.0,) * D, scale=(1.0,) * D, clip=0.0),
    ],
)
def test_a_normaliser_that_cannot_normalise_is_refused(normaliser: Normaliser):
    with pytest.raises(BadActor):
        Actor.from_safetensors(spoilt(), SPEC, normaliser)


def test_strange_observations_are_recognised():
    actor = Actor.from_safetensors(spoilt(), SPEC, NORMALISER)
    usual = np.tile(np.array(NORMALISER.mean), (3, 1))
    usual[1, 0] += 6.0
    usual[2, 5] = np.nan
    assert actor.in_range(usual).tolist() == [True, False, False]
