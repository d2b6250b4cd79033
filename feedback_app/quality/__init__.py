"""How good the ratings are: agreement, bias, reliability, consistency, timing, win rates, drift. No torch here."""
