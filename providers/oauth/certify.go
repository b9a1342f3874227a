package oauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
)

// What a server does with a request for fewer scopes.
const (
	supported = "supported" // it narrows, and says so
	ignored   = "ignored"   // the token has everything
	rejected  = "rejected"  // there is no token
	shrinks   = "shrinks"   // it narrows, and so for good
	unsaid    = "unsaid"    // it does not say what the token is for
)

// certified is what is known of a server, and when it was looked up.
type certified struct {
	narrow string
	until  time.Time
}

// How long what is known is gone by, and how long it may take to look it up.
const (
	certifiedFor  = time.Minute
	certifiedWait = 2 * time.Second
)

func (p *provider) own() upstream.ParentKey { return upstream.ParentKey{Provider: p.name} }

// narrows reports whether the server was certified to narrow. What is not known is no.
func (p *provider) narrows() bool {
	now := p.deps.Now()
	p.mu.Lock()
	r := p.record
	first := r.until.IsZero()
	look := !p.asking && !now.Before(r.until)
	if look {
		p.asking = true
	}
	p.mu.Unlock()
	switch {
	case look && first:
		p.look()
	case look:
		go p.look()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record.narrow == supported
}

func (p *provider) look() {
	ctx, cancel := context.WithTimeout(context.Background(), certifiedWait)
	defer cancel()
	r := certified{until: p.deps.Now().Add(certifiedFor)}
	parent, err := p.deps.Parents.Get(ctx, p.own())
	if err == nil && parent.Facts["server"] == p.fingerprint() {
		r.narrow = parent.Facts["narrow"]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.record, p.asking = r, false
}

// fingerprint says what was certified: of another server, or of one that is asked in
// another way, it means nothing.
func (p *provider) fingerprint() string {
	c := p.cfg
	return fmt.Sprintf("%s %s %s %s %s %s %q %q %s %q", c.Flow, c.Issuer, c.Token, c.ClientID, c.Revoke, c.Revokes, c.Separator, c.Always, c.Resource, c.TokenParams)
}

// certify finds out whether the server narrows, with one subject's account or token, and
// keeps what it found.
func (p *provider) certify(ctx context.Context, r broker.CertifyRequest) (result string, err error) {
	all := slices.Clone(p.cfg.Scopes)
	if p.cfg.Flow == flowRefresh {
		account, err := p.linked(ctx, r.Subject)
		if err != nil {
			return "", err
		}
		all = slices.DeleteFunc(all, func(s string) bool { return !slices.Contains(account.Scopes, s) })
	}
	if len(all) < 2 {
		return "", errors.New("at least two scopes are needed that the subject has consented to")
	}
	r.Say("asking for " + all[0] + " alone")
	if result, err = p.narrowed(ctx, r, all[:1]); err != nil {
		return "", err
	}
	if result == supported {
		r.Say("asking for all of them again")
		again, err := p.narrowed(ctx, r, all)
		if broker.CodeOf(err) == broker.NeedsLink && p.cfg.Revokes == "token" {
			return "", fmt.Errorf("the end of one token was the end of the account's link: revokes has to be family or grant: %w", err)
		}
		if err != nil {
			return "", err
		}
		if again != supported {
			result = shrinks
		}
	}
	_, err = p.deps.Parents.Put(ctx, p.own(), &upstream.Parent{Facts: map[string]string{
		"narrow": result, "server": p.fingerprint(), "at": p.deps.Now().UTC().Format(time.RFC3339),
	}})
	if err != nil {
		return result, fmt.Errorf("keep the result: %w", err)
	}
	p.mu.Lock()
	p.record = certified{}
	p.mu.Unlock()
	return result, nil
}

// narrowed asks for some scopes, says what came of it, and ends the token.
func (p *provider) narrowed(ctx context.Context, r broker.CertifyRequest, scopes []string) (string, error) {
	got, err := p.obtain(ctx, r.Subject, r.Assertion, scopes)
	switch {
	case broker.CodeOf(err) == broker.BadScope:
		return rejected, nil
	case err != nil:
		return "", err
	}
	_, failed := p.end(ctx, handle{Token: got.Access})
	g, _, err := p.granted(ctx, &tokens{Access: got.Access, Scope: got.Scope})
	if err != nil && got.Scope == nil {
		return unsaid, failed
	}
	want, err2 := p.schema.ParseValue(map[string]any{"scopes": texts(scopes)})
	if err := errors.Join(err, err2, failed); err != nil {
		return "", err
	}
	if g.Equal(want) {
		return supported, nil
	}
	return ignored, nil
}
