"""`rlhf chat`: a page where people talk with a model and say what they think of its answers. Torch-free."""
