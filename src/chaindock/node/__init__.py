"""The composition root, and the admin API of a node."""
