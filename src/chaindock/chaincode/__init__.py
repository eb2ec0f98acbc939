"""The node's end of the shim protocol, and the launch, stop and status of chaincode.

Controllers start instances; this package talks to what they have started.
Source: docs/fabric/shim-protocol.md
"""
