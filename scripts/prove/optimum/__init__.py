"""What the proofs of the known optimum share."""
