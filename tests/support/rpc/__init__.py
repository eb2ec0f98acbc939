"""Both ends of a connection by the node's transport."""
