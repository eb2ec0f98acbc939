"""The admin API and the operations endpoint of a running node."""
