"""What PPO maximises. docs/rewards.md shows every kind at work."""

from rlhf.ppo.rewards.base import Reward, Scores, all_scores, check_prompts, score_completions, score_own
from rlhf.ppo.rewards.groundedness import groundedness
from rlhf.ppo.rewards.rules import RuleList
from rlhf.ppo.rewards.sources import RewardSources, content_of
from rlhf.ppo.rewards.terms import (
    ClassifierReward,
    ForeignModelReward,
    ModelReward,
    Term,
    TextReward,
    WeightedReward,
)

__all__ = [
    "ClassifierReward",
    "ForeignModelReward",
    "ModelReward",
    "Reward",
    "RewardSources",
    "RuleList",
    "Scores",
    "Term",
    "TextReward",
    "WeightedReward",
    "all_scores",
    "check_prompts",
    "content_of",
    "groundedness",
    "score_completions",
    "score_own",
]
