"""`rlhf compare`: several ways of tuning at an equal price."""
