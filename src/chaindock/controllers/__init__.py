"""Ways to run chaincode; none knows another."""
