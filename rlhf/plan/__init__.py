"""`rlhf plan`: what a stage will need of memory, found from the model's configuration alone, without its weights."""
