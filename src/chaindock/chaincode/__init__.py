"""The stream with chaincode, and how chaincode gets launched.

Owns:    the node's end of the shim protocol; launch, stop and status of chaincode.
Not:     how something is started (controllers), what state is (ledger), who may call
         (endorser).
Entry:   support.ChaincodeSupport, launcher.RuntimeLauncher, server.ChaincodeListener
Source:  shim-protocol.md; launch.md §5
"""
