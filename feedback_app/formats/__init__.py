"""What other programs' files look like, each turned into the same items."""
