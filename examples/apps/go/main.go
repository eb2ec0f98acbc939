// Command parcels registers a parcel and waits for its breach.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hyperledger/fabric-gateway/pkg/client"
	"github.com/hyperledger/fabric-gateway/pkg/hash"
	"github.com/hyperledger/fabric-gateway/pkg/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) != 2 || os.Getenv("PEER_ENDPOINT") == "" {
		fmt.Fprintln(os.Stderr, `usage: go run . PARCEL, after eval "$(chaindock env app coldchain)"`)
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err, status.Convert(err).Details())
		os.Exit(1)
	}
}

func run(parcel string) (err error) {
	connection, err := dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	gateway, err := connect(connection)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gateway.Close()) }()
	network := gateway.GetNetwork(env("CHANNEL_NAME", "mychannel"))
	contract := network.GetContract(env("CHAINCODE_NAME", "coldchain"))

	// The listener goes on after the last event that it has seen, also that of an earlier run.
	checkpoint, err := client.NewFileCheckpointer(env("CHECKPOINT", "events.checkpoint"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, checkpoint.Close()) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := network.ChaincodeEvents(ctx, contract.ChaincodeName(), client.WithCheckpoint(checkpoint))
	if err != nil {
		return err
	}

	if _, err := contract.SubmitTransaction("register", parcel, "2", "8"); err != nil {
		return err
	}
	fmt.Println("registered", parcel)
	found, err := contract.EvaluateTransaction("parcel", parcel)
	if err != nil {
		return err
	}
	fmt.Println("parcel", string(found))
	if _, err := contract.SubmitTransaction("record", parcel, "12.5"); err != nil {
		return err
	}
	return breach(events, checkpoint, parcel)
}

func breach(events <-chan *client.ChaincodeEvent, checkpoint *client.FileCheckpointer, parcel string) error {
	for event := range events {
		var notice struct {
			ID      string
			Celsius float64
		}
		if err := json.Unmarshal(event.Payload, &notice); err != nil {
			return err
		}
		fmt.Println(event.EventName, notice.ID, notice.Celsius)
		if err := checkpoint.CheckpointChaincodeEvent(event); err != nil {
			return err
		}
		if notice.ID == parcel {
			return nil
		}
	}
	return errors.New("the peer ended the events")
}

func dial() (*grpc.ClientConn, error) {
	ca, err := os.ReadFile(os.Getenv("TLS_CERT_PATH"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	tls := credentials.NewClientTLSFromCert(roots, os.Getenv("PEER_HOST_ALIAS"))
	return grpc.NewClient(os.Getenv("PEER_ENDPOINT"), grpc.WithTransportCredentials(tls))
}

func connect(connection *grpc.ClientConn) (*client.Gateway, error) {
	certificatePEM, err := firstFile(os.Getenv("CERT_DIRECTORY_PATH"))
	if err != nil {
		return nil, err
	}
	certificate, err := identity.CertificateFromPEM(certificatePEM)
	if err != nil {
		return nil, err
	}
	user, err := identity.NewX509Identity(os.Getenv("MSP_ID"), certificate)
	if err != nil {
		return nil, err
	}
	keyPEM, err := firstFile(os.Getenv("KEY_DIRECTORY_PATH"))
	if err != nil {
		return nil, err
	}
	key, err := identity.PrivateKeyFromPEM(keyPEM)
	if err != nil {
		return nil, err
	}
	sign, err := identity.NewPrivateKeySign(key)
	if err != nil {
		return nil, err
	}
	return client.Connect(
		user, client.WithSign(sign), client.WithHash(hash.SHA256), client.WithClientConnection(connection),
	)
}

func firstFile(folder string) ([]byte, error) {
	found, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no file in %s", folder)
	}
	return os.ReadFile(filepath.Join(folder, found[0].Name()))
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
