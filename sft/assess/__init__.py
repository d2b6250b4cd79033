"""`rlhf sft-eval`: what supervised tuning gained over the untouched base, and what it lost."""
