"""What environments have in common whose sub-environments share their worlds and step together."""

from typing import Any

import gymnasium
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

Wrapper = type[gymnasium.Wrapper[Any, Any, Any, Any]]


class SharedVecEnv(VecEnv):
    """Pools that have no attributes, methods and wrappers of their own."""

    def close(self) -> None:
        """Do nothing: a world in memory holds nothing open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, which all pools have in common."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: pools have no attributes of their own.

        Raises:
            AttributeError: always.

        """
        raise AttributeError(f"{attr_name}: pools side by side have no attributes of their own")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refuse: pools have no methods of their own.

        Raises:
            AttributeError: always.

        """
        raise AttributeError(f"{method_name}: pools side by side have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Wrapper, indices: VecEnvIndices = None) -> list[bool]:
        """Say that no pool is wrapped."""
        return [False for _ in self._get_indices(indices)]
