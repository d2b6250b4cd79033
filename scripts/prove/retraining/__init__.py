"""Parts of the proofs about retraining."""
