"""Conformance suites and fakes, for implementers of our contracts."""
