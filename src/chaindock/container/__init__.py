"""Contracts between callers that launch chaincode and back ends that run it."""
