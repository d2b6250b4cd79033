"""What a round has to pass before its policy may be the champion: one file per gate, one kind of verdict."""
