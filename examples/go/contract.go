package main

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/hyperledger/fabric-chaincode-go/v2/shim"
	"github.com/hyperledger/fabric-contract-api-go/v2/contractapi"
)

const (
	intact   = "intact"
	breached = "breached"

	// Composite keys: holding/MSP/parcel finds what an organisation holds,
	// reading/parcel/time/transaction lists readings in order of time.
	holding = "holding"
	reading = "reading"

	// As wide for every time, so that the order of keys is the order of times.
	stamp = "2006-01-02T15:04:05.000Z"
)

// Parcel is something that must stay between two temperatures on its way.
type Parcel struct {
	ID        string  `json:"id"`
	Lowest    float64 `json:"lowest"`
	Highest   float64 `json:"highest"`
	Custodian string  `json:"custodian"`
	State     string  `json:"state"`
}

// Reading is a temperature that the custodian measured.
type Reading struct {
	Celsius float64 `json:"celsius"`
	At      string  `json:"at"`
	By      string  `json:"by"`
}

// Change is one version of a parcel.
type Change struct {
	Tx     string `json:"tx"`
	At     string `json:"at"`
	Parcel Parcel `json:"parcel"`
}

// ColdChain is the contract; its exported methods are the transactions.
type ColdChain struct {
	contractapi.Contract
}

// GetEvaluateTransactions names the transactions that only read.
func (c *ColdChain) GetEvaluateTransactions() []string {
	return []string{"Parcel", "Readings", "Holdings", "History"}
}

// Register puts a new parcel into the hands of the caller's organisation.
func (c *ColdChain) Register(ctx contractapi.TransactionContextInterface, id string, lowest, highest float64) (*Parcel, error) {
	if id == "" {
		return nil, fmt.Errorf("a parcel needs an id")
	}
	if !finite(lowest) || !finite(highest) || lowest > highest {
		return nil, fmt.Errorf("%g to %g °C is no temperature band", lowest, highest)
	}
	caller, err := ctx.GetClientIdentity().GetMSPID()
	if err != nil {
		return nil, err
	}
	known, err := ctx.GetStub().GetState(id)
	if err != nil {
		return nil, err
	}
	if known != nil {
		return nil, fmt.Errorf("parcel %s is registered already", id)
	}
	parcel := &Parcel{ID: id, Lowest: lowest, Highest: highest, Custodian: caller, State: intact}
	if err := hold(ctx.GetStub(), parcel); err != nil {
		return nil, err
	}
	return parcel, save(ctx.GetStub(), parcel)
}

// Handover gives a parcel to another organisation; only its custodian can.
func (c *ColdChain) Handover(ctx contractapi.TransactionContextInterface, id string, to string) (*Parcel, error) {
	if to == "" {
		return nil, fmt.Errorf("parcel %s needs a new custodian", id)
	}
	parcel, err := c.inHand(ctx, id)
	if err != nil {
		return nil, err
	}
	if to == parcel.Custodian {
		return nil, fmt.Errorf("parcel %s is with %s already", id, to)
	}
	before, err := ctx.GetStub().CreateCompositeKey(holding, []string{parcel.Custodian, id})
	if err != nil {
		return nil, err
	}
	if err := ctx.GetStub().DelState(before); err != nil {
		return nil, err
	}
	parcel.Custodian = to
	if err := hold(ctx.GetStub(), parcel); err != nil {
		return nil, err
	}
	return parcel, save(ctx.GetStub(), parcel)
}

// Record adds a temperature reading. One outside the band breaches the parcel for good,
// and the event "breach" tells whoever listens.
func (c *ColdChain) Record(ctx contractapi.TransactionContextInterface, id string, celsius float64) (*Parcel, error) {
	if !finite(celsius) {
		return nil, fmt.Errorf("%g is no temperature", celsius)
	}
	parcel, err := c.inHand(ctx, id)
	if err != nil {
		return nil, err
	}
	now, err := ctx.GetStub().GetTxTimestamp()
	if err != nil {
		return nil, err
	}
	taken := Reading{Celsius: celsius, At: now.AsTime().Format(stamp), By: parcel.Custodian}
	// A key of its own: two readings in one block do not invalidate each other,
	// because neither writes what the other has read.
	key, err := ctx.GetStub().CreateCompositeKey(reading, []string{id, taken.At, ctx.GetStub().GetTxID()})
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(taken)
	if err != nil {
		return nil, err
	}
	if err := ctx.GetStub().PutState(key, value); err != nil {
		return nil, err
	}
	if parcel.State == breached || (parcel.Lowest <= celsius && celsius <= parcel.Highest) {
		return parcel, nil
	}
	parcel.State = breached
	notice, err := json.Marshal(map[string]any{"id": id, "celsius": celsius, "at": taken.At})
	if err != nil {
		return nil, err
	}
	if err := ctx.GetStub().SetEvent("breach", notice); err != nil {
		return nil, err
	}
	return parcel, save(ctx.GetStub(), parcel)
}

// Parcel returns a parcel as it is now.
func (c *ColdChain) Parcel(ctx contractapi.TransactionContextInterface, id string) (*Parcel, error) {
	value, err := ctx.GetStub().GetState(id)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, fmt.Errorf("there is no parcel %s", id)
	}
	parcel := new(Parcel)
	if err := json.Unmarshal(value, parcel); err != nil {
		return nil, fmt.Errorf("parcel %s cannot be read: %w", id, err)
	}
	return parcel, nil
}

// Readings returns all readings of a parcel, oldest first.
func (c *ColdChain) Readings(ctx contractapi.TransactionContextInterface, id string) ([]Reading, error) {
	rows, err := ctx.GetStub().GetStateByPartialCompositeKey(reading, []string{id})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	readings := []Reading{}
	for rows.HasNext() {
		row, err := rows.Next()
		if err != nil {
			return nil, err
		}
		var taken Reading
		if err := json.Unmarshal(row.Value, &taken); err != nil {
			return nil, err
		}
		readings = append(readings, taken)
	}
	return readings, nil
}

// Holdings returns the ids of the parcels that an organisation holds.
func (c *ColdChain) Holdings(ctx contractapi.TransactionContextInterface, custodian string) ([]string, error) {
	rows, err := ctx.GetStub().GetStateByPartialCompositeKey(holding, []string{custodian})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	ids := []string{}
	for rows.HasNext() {
		row, err := rows.Next()
		if err != nil {
			return nil, err
		}
		_, parts, err := ctx.GetStub().SplitCompositeKey(row.Key)
		if err != nil {
			return nil, err
		}
		ids = append(ids, parts[1])
	}
	return ids, nil
}

// History returns every version of a parcel, newest first.
func (c *ColdChain) History(ctx contractapi.TransactionContextInterface, id string) ([]Change, error) {
	rows, err := ctx.GetStub().GetHistoryForKey(id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	changes := []Change{}
	for rows.HasNext() {
		row, err := rows.Next()
		if err != nil {
			return nil, err
		}
		change := Change{Tx: row.TxId, At: row.Timestamp.AsTime().Format(stamp)}
		if err := json.Unmarshal(row.Value, &change.Parcel); err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// inHand returns the parcel if the caller's organisation holds it.
func (c *ColdChain) inHand(ctx contractapi.TransactionContextInterface, id string) (*Parcel, error) {
	parcel, err := c.Parcel(ctx, id)
	if err != nil {
		return nil, err
	}
	caller, err := ctx.GetClientIdentity().GetMSPID()
	if err != nil {
		return nil, err
	}
	if caller != parcel.Custodian {
		return nil, fmt.Errorf("parcel %s is with %s, not with %s", id, parcel.Custodian, caller)
	}
	return parcel, nil
}

func hold(stub shim.ChaincodeStubInterface, parcel *Parcel) error {
	key, err := stub.CreateCompositeKey(holding, []string{parcel.Custodian, parcel.ID})
	if err != nil {
		return err
	}
	// The key says it all, but an empty value would delete it.
	return stub.PutState(key, []byte{1})
}

func save(stub shim.ChaincodeStubInterface, parcel *Parcel) error {
	value, err := json.Marshal(parcel)
	if err != nil {
		return err
	}
	return stub.PutState(parcel.ID, value)
}

func finite(celsius float64) bool {
	return !math.IsNaN(celsius) && !math.IsInf(celsius, 0)
}
