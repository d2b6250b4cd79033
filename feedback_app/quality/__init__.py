"""How good the ratings are: agreement, bias, people, consistency, timing, win rates, drift. No torch here."""
