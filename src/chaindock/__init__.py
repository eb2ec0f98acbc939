"""Chaindock: build, launch and talk to Hyperledger Fabric chaincode."""

__version__ = "0.1.0"
