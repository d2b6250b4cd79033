"""Proximal policy optimisation: prompts, rollout, advantages, losses, KL control, training, evaluation."""
