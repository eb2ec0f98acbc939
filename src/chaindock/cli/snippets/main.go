// Calls the contract $name through the node's gateway. Save it as main.go, then:
//
//	go mod init app && go mod tidy
//	go run . submit FUNCTION ARG...        or: go run . evaluate FUNCTION ARG...
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"

	"github.com/hyperledger/fabric-gateway/pkg/client"
	"github.com/hyperledger/fabric-gateway/pkg/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) < 3 || (os.Args[1] != "submit" && os.Args[1] != "evaluate") {
		log.Fatalln("usage: go run . submit|evaluate FUNCTION ARG...")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read($ca))
	config := &tls.Config{RootCAs: roots, ServerName: $tls_name}
	//mutual config.Certificates = []tls.Certificate{must(tls.LoadX509KeyPair($tls_certificate, $tls_key))}
	secured := grpc.WithTransportCredentials(credentials.NewTLS(config))
	connection := must(grpc.NewClient($address, secured))
	defer connection.Close()

	certificate := must(identity.CertificateFromPEM(read($certificate)))
	user := must(identity.NewX509Identity($mspid, certificate))
	key := must(identity.PrivateKeyFromPEM(read($key)))
	sign := must(identity.NewPrivateKeySign(key))
	gateway := must(client.Connect(user, client.WithSign(sign), client.WithClientConnection(connection)))
	defer gateway.Close()

	contract := gateway.GetNetwork($channel).GetContract($contract)
	call := contract.EvaluateTransaction
	if os.Args[1] == "submit" {
		call = contract.SubmitTransaction
	}
	fmt.Println(string(must(call(os.Args[2], os.Args[3:]...))))
}

func read(file string) []byte {
	return must(os.ReadFile(file))
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatalln(err, status.Convert(err).Details())
	}
	return value
}
