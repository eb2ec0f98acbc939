"""Contracts between wanting a chaincode run and running it."""
