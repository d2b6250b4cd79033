"""The parts of `bench_ppo.py`. `theirs` and what it imports run in the peer's environment: no rlhf there."""
