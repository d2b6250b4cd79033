"""`rlhf classify`, `rlhf label`: labelled texts become a classifier that says how sure it is."""
