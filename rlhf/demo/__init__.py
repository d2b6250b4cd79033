"""The embedded world: a small support desk that the project makes itself. All of it is simulated."""
