"""Both ends of the chaincode stream: real shims, and shims played by a test."""
