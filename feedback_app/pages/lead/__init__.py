"""The leads' page."""
