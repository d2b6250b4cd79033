"""`rlhf prepare`: from files as people have them to what `rlhf sft` trains on. Torch-free but for `tokens`."""
