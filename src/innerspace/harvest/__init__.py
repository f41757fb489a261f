"""Hidden states as rows."""
