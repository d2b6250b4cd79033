"""The public REST API under /api/v1: for programs with a token, and for leads and admins with a session."""
