"""Nodes under faults: what breaks them, and what must hold afterwards."""
