"""PPO with people in its loop: what the policy says now is rated, and the reward model follows."""
