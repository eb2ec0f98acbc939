"""From a signed proposal to a committed transaction."""
