// Command coldchain serves the cold-chain contract.
package main

import (
	"log"

	"github.com/hyperledger/fabric-contract-api-go/v2/contractapi"
)

func main() {
	chaincode, err := contractapi.NewChaincode(new(ColdChain))
	if err != nil {
		log.Fatalf("the contract cannot be served: %v", err)
	}
	// Start returns when the peer ends the stream: the process has to end then too.
	if err := chaincode.Start(); err != nil {
		log.Fatalf("the stream to the peer ended: %v", err)
	}
}
