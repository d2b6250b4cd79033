"""Serving: the endpoint, the chat that collects feedback, and what is watched meanwhile."""
