package api

import (
	"context"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/internal/secret"
)

// Operations are what the local socket offers besides revocation.
type Operations interface {
	// SigningKeys describes our signing keys, oldest first.
	SigningKeys() []SigningKey
	// RotateKey adds a signing key; at once, it signs without an overlap.
	RotateKey(ctx context.Context, operator string, atOnce bool) (SigningKey, error)
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

func (s *Server) adminClientSecret(c echo.Context) error {
	made, hash := s.cfg.Operations.NewClientSecret()
	return c.JSON(http.StatusCreated, map[string]string{"secret": made.Reveal(), "hash": hash})
}
