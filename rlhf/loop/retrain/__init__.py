"""Rounds of retraining: from new ratings to a better champion, or to the reasons why not."""
