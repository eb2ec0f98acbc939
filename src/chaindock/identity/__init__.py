"""The organisation of the node: CA, certificates, signatures, MSP checks."""
