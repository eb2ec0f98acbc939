"""The admin API of a running node."""
