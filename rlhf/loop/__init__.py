"""What needs both models and the feedback store: sampling for ratings, evaluation, the report."""
