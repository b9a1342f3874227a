package api

import (
	"context"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes"
)

// Operations are what administrators can do beside what the broker does.
type Operations interface {
	// SigningKeys describes our signing keys, oldest first.
	SigningKeys() []SigningKey
	// RotateKey adds a signing key; at once, it signs without an overlap.
	RotateKey(ctx context.Context, operator string, atOnce bool) (SigningKey, error)
	// RevokeKey withdraws a signing key at once. An error wraps [broker.ErrNotFound]
	// if there is none of that id.
	RevokeKey(ctx context.Context, operator, kid string) (RevokedKey, error)
	// RotateSealingKey begins a new key for what is sealed, and returns its id.
	RotateSealingKey(ctx context.Context, operator string) (id string, err error)
	// NewClientSecret makes a secret for a client, and the hash for its entry. An error
	// means that it could not be recorded.
	NewClientSecret(ctx context.Context, operator string) (s secret.String, hash string, err error)
	// Mappings are the mappings as they are on disk, which may be newer than those in
	// force; none if they cannot be read.
	Mappings() []*scopes.Mapping
	// PolicyProblem says why the newest mappings are not in force; empty if they
	// are.
	PolicyProblem() string
}

// SigningKey describes one of our signing keys.
type SigningKey struct {
	ID        string    `json:"kid"`
	Algorithm string    `json:"alg"`
	State     string    `json:"state"` // next, active or retired
	Created   time.Time `json:"created"`
	Active    time.Time `json:"active"`
	Until     time.Time `json:"until,omitzero"`
}

// RevokedKey is what came of withdrawing a signing key.
type RevokedKey struct {
	Revoked string `json:"revoked"`
	// Signs is the key that signs from now on.
	Signs SigningKey `json:"signs"`
	// New says that it was made for this: nobody knows it yet.
	New bool `json:"new"`
	// Within is how many seconds replicas that run may take to see it.
	Within int `json:"within"`
}
