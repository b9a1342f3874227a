package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Operations are what the local socket offers besides revocation.
type Operations interface {
	// SigningKeys describes our signing keys, oldest first.
	SigningKeys() []SigningKey
	// RotateKey adds a signing key; at once, it signs without an overlap.
	RotateKey(ctx context.Context, operator string, atOnce bool) (SigningKey, error)
	// RevokeKey withdraws a signing key at once. An error wraps [broker.ErrNotFound]
	// if there is none of that id.
	RevokeKey(ctx context.Context, operator, kid string) (RevokedKey, error)
	// NewClientSecret makes a secret for a client, and the hash for its entry.
	NewClientSecret() (s secret.String, hash string)
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

func (s *Server) adminKeys(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"keys": s.cfg.Operations.SigningKeys()})
}

func (s *Server) adminRotate(c echo.Context) error {
	var in struct {
		AtOnce bool `json:"at_once"`
	}
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	key, err := s.cfg.Operations.RotateKey(c.Request().Context(), operator(c), in.AtOnce)
	if err != nil {
		return s.fail(c, err)
	}
	return c.JSON(http.StatusCreated, key)
}

func (s *Server) adminRevokeKey(c echo.Context) error {
	var in struct {
		KID string `json:"kid"`
	}
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	out, err := s.cfg.Operations.RevokeKey(c.Request().Context(), operator(c), in.KID)
	if errors.Is(err, broker.ErrNotFound) {
		err = broker.Fail(broker.BadTarget, err, "there is no such signing key")
	}
	if err != nil {
		return s.fail(c, err)
	}
	return c.JSON(http.StatusCreated, out)
}

func (s *Server) adminClientSecret(c echo.Context) error {
	made, hash := s.cfg.Operations.NewClientSecret()
	return c.JSON(http.StatusCreated, map[string]string{"secret": made.Reveal(), "hash": hash})
}
