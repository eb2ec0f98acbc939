"""What each chaincode language needs to be packaged, built and started."""
