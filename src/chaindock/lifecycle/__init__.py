"""Definitions, targets and supervisors: what should run, and what keeps it running."""
