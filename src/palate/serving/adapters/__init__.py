"""A Scorer under the signature of each RL stack; none of them needs its stack installed."""

from palate.serving.adapters.areal import ArealReward, areal_reward
from palate.serving.adapters.ms_swift import ms_swift_orm, ms_swift_plugin
from palate.serving.adapters.nemo_rl import NemoRLEnvironment
from palate.serving.adapters.openrlhf import openrlhf_reward
from palate.serving.adapters.slime import slime_reward
from palate.serving.adapters.trl import trl_reward
from palate.serving.adapters.verifiers import verifiers_group_reward, verifiers_reward
from palate.serving.adapters.verl import verl_score

__all__ = [
    "ArealReward",
    "NemoRLEnvironment",
    "areal_reward",
    "ms_swift_orm",
    "ms_swift_plugin",
    "openrlhf_reward",
    "slime_reward",
    "trl_reward",
    "verifiers_group_reward",
    "verifiers_reward",
    "verl_score",
]
