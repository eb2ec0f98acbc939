"""gRPC over HTTP/2, for streams with chaincode and for client applications.

Source: docs/adr/0011-own-transport.md
"""
