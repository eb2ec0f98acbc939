"""Chaincode as local processes."""
