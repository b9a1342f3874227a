package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// made is what stint.mint answers.
type made struct {
	role, group string
	seconds     float64
}

// Mint implements [broker.Provider]. The lease's id is all that Revoke needs, so
// that there is no handle to note.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if !leaseID.MatchString(r.Lease) {
		return nil, fmt.Errorf("lease id %q cannot name a role", r.Lease)
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	start := p.deps.Now()
	password := newPassword()
	m, err := p.mint(ctx, r, r.Expires.Sub(start), password)
	if err != nil {
		return nil, err
	}
	out, err := p.attested(ctx, r.Lease, r.Grant, m, start, r.Expires)
	if err != nil {
		return nil, err
	}
	out.Document, err = p.document(m.role, password, out.Expires)
	return out, err
}

// attested is the answer for a role that is there: what the catalogue says that it may
// do, and until when.
func (p *provider) attested(ctx context.Context, lease string, asked grant.Grant, m made, start, latest time.Time) (*broker.Minted, error) {
	granted, err := p.attest(ctx, lease, asked)
	if err != nil {
		return nil, err
	}
	if below, _ := grant.Leq(granted, asked); below && !granted.Equal(asked) {
		_, missing := grant.Leq(asked, granted)
		return nil, fmt.Errorf("the database grants less than was asked: without %v", missing)
	}
	expires := start.Add(time.Duration(m.seconds * float64(time.Second)))
	if left := latest.Sub(expires); left < time.Second { // the time that the call took
		expires = latest
	}
	return &broker.Minted{
		Granted: granted, Evidence: broker.Attested, Expires: expires,
		Upstream: map[string]string{"role": m.role, "group": m.group},
	}, nil
}

// renew lets a role live longer. What it may do is read back again: it may have changed
// since.
func (p *provider) renew(ctx context.Context, r broker.RenewRequest) (*broker.Minted, error) {
	if !leaseID.MatchString(r.Lease) {
		return nil, fmt.Errorf("lease id %q cannot name a role", r.Lease)
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	start := p.deps.Now()
	var m made
	for i := 0; ; i++ {
		err := p.pool.QueryRow(ctx, `SELECT role_name::text, group_name::text, seconds FROM stint.renew($1, $2, $3)`,
			r.Lease, r.Expires.Sub(start).Seconds(), r.Expires).Scan(&m.role, &m.group, &m.seconds)
		if err == nil {
			return p.attested(ctx, r.Lease, r.Grant, m, start, r.Expires)
		}
		if i == attempts || !again(err) || ctx.Err() != nil {
			return nil, fault("renew", err)
		}
	}
}

// attempts bounds how often a mint is tried that others got in the way of. Each
// failure undid itself.
const attempts = 5

func (p *provider) mint(ctx context.Context, r broker.MintRequest, life time.Duration, password secret.String) (made, error) {
	verifier, err := scramVerifier(password)
	if err != nil {
		return made{}, err
	}
	about, err := strictjson.Encode(map[string]string{
		"lease": r.Lease, "subject": printable(r.Pseudonym), "agent": printable(r.Actor), "client": printable(r.Client),
	})
	if err != nil {
		return made{}, fmt.Errorf("encode comment: %w", err)
	}
	for i := 0; ; i++ {
		var m made
		err = p.pool.QueryRow(ctx,
			`SELECT role_name::text, group_name::text, seconds FROM stint.mint($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb)`,
			r.Lease, verifier.Reveal(), string(r.Rendered), life.Seconds(), r.Expires, p.cfg.Connections, r.Subject, string(about),
		).Scan(&m.role, &m.group, &m.seconds)
		if err == nil {
			return m, nil
		}
		if i == attempts || !again(err) || ctx.Err() != nil {
			return made{}, fault("mint", err)
		}
	}
}

// printable makes of a name what can stand in a comment.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return s
}

// document is the credential: libpq's own keywords, so that it can be handed to
// a driver as it is, and the same as a URI.
func (p *provider) document(role string, password secret.String, expires time.Time) (secret.String, error) {
	if role == "" {
		return secret.String{}, errors.New("the database did not say the role")
	}
	text, err := strictjson.Encode(map[string]any{
		"host": p.cfg.Public.Host, "port": p.cfg.Public.Port, "dbname": p.cfg.Public.Database, "sslmode": p.cfg.Public.SSLMode,
		"user": role, "password": password.Reveal(), "url": p.cfg.Public.url(role, password.Reveal()),
		"expires_at": expires.UTC().Format(time.RFC3339),
	})
	return secret.New(string(text)), err
}
