"""PPO whose reward is renewed while it runs, from what people say about the current policy."""
