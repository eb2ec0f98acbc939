"""Real nodes that tests start, kill and look at from outside."""
