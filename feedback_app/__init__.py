"""The feedback app: a torch-free store of human ratings and the rating desk in front of it."""
