"""Parts of the proofs of the rating desk: a private PostgreSQL, a served store, and clients of it."""
