// Package upstream is what providers have in common: what they are handed, how they ask
// an upstream over HTTP, what they remember of its answers, and how the secrets that
// credentials are made from are kept and renewed.
//
// It knows no upstream in particular, decides nothing, and repeats nothing that may have
// taken effect.
package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// Deps are what a provider is handed.
type Deps struct {
	// Self is Stint's own issuer identifier.
	Self string
	// Secret returns the secret that a reference of the settings names.
	Secret func(ctx context.Context, ref string) (secret.String, error)
	// HTTP returns a client that may ask these hosts, wherever they are, and no others.
	// roots are certificates in PEM to verify them by; nil: the system's.
	HTTP func(hosts []string, roots []byte) (*http.Client, error)
	// Assert signs claims as a JWT of Stint's, for an audience that is not Stint: with
	// iss and iat, and by a key that the metadata names. The caller sets aud, sub, exp
	// and jti.
	Assert func(ctx context.Context, claims map[string]any) (secret.String, error)
	// Parents keeps the secrets that credentials are made from.
	Parents *Parents
	Now     func() time.Time
	Log     *slog.Logger
}

// Duration is a span of time in a configuration, written as "15m" or "1h30m".
type Duration struct{ time.Duration }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no duration; write for example 15m or 1h30m", b)
	}
	d.Duration = v
	return nil
}
