"""The reward model: from judgements to a calibrated scalar. `reward.score` is the only door PPO uses."""
