package broker

import (
	"encoding/json"
	"fmt"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/strictjson"
)

// leaseVersion is the version of leases as the ledger and the journal keep them.
const leaseVersion = 1

// keptLease is a lease with its version. Absent is 1: leases had none at first.
type keptLease struct {
	Format int `json:"v"`
	Lease
}

// EncodeLease returns a lease as a ledger keeps it. Unlike encoding/json, it leaves
// Grant as it is.
func EncodeLease(l *Lease) ([]byte, error) { return strictjson.Encode(keptLease{leaseVersion, *l}) }

// DecodeLease reads a lease as a ledger or the journal keeps it. Members that are not
// known are passed over. Errors: ErrLater, for a lease of a later version: whoever
// updated it would leave out what it does not know.
func DecodeLease(data []byte) (*Lease, error) {
	var k keptLease
	err := strictjson.DecodeKnown(data, &k)
	if err != nil || k.Format > leaseVersion {
		if v, later := strictjson.Later(data, "v", leaseVersion); later {
			return nil, fmt.Errorf("a lease of version %d: %w", v, ErrLater)
		}
	}
	return &k.Lease, err
}

// leaseFrame is a lease as the journal keeps it.
func leaseFrame(l *Lease) (audit.Frame, error) {
	data, err := json.Marshal(keptLease{leaseVersion, *l})
	if err != nil {
		return audit.Frame{}, fmt.Errorf("encode lease: %w", err)
	}
	return audit.Frame{Type: audit.FrameLease, Payload: data}, nil
}
