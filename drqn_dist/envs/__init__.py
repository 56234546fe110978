"""Environments: the only package that knows gymnasium and ale-py.

Importing it registers `drqn_dist/GridWorld-v0` and `drqn_dist/PositionOnlyCartPole-v0` with Gymnasium.
"""

import gymnasium

gymnasium.register(id="drqn_dist/GridWorld-v0", entry_point="drqn_dist.envs.gridworld:GridWorld")
gymnasium.register(
    id="drqn_dist/PositionOnlyCartPole-v0",
    entry_point="drqn_dist.envs.cartpole:PositionOnlyCartPole",
    max_episode_steps=500,
)
