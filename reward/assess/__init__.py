"""`rlhf reward-eval`: what a reward model got right, what it fell for, and whom it treats differently."""
