"""Ledgers, envelopes and proposals for tests."""
