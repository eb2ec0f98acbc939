"""The services of a Fabric peer and orderer for client applications and the `peer` CLI."""
