"""Nodes with the services for clients, and clients of them that know gRPC alone."""
