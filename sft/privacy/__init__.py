"""What a model gives away of its demonstrations: training with a bound on it (DP-SGD), and a test of it (canaries)."""
