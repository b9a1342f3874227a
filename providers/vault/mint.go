package vault

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// A lease id becomes a display name in Vault, and names are made of that.
var leaseID = regexp.MustCompile(`^[a-z0-9]{16,40}$`)

// margin is how much earlier than asked a credential ends: lives begin when Vault
// is reached, and are whole seconds.
const margin = time.Second

// made is what an engine made.
type made struct {
	fields map[string]secret.String
	lease  string
	// begun and done are when it was asked for and when the answer came, and life
	// how long it is leased from some time between them.
	begun, done time.Time
	life        time.Duration
}

// Mint implements [broker.Provider]. A call of Vault that is under way is not
// given up when the caller does: its answer may be all that the credential can
// be ended by.
func (p *provider) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	name, order, err := p.read(r.Rendered)
	if err != nil {
		return nil, fmt.Errorf("read rendered grant: %w", err)
	}
	role := p.cfg.Roles[name]
	if !leaseID.MatchString(r.Lease) {
		return nil, fmt.Errorf("lease id %q cannot be a display name", r.Lease)
	}
	token, h, ends, err := p.child(ctx, order, r)
	if err != nil {
		return nil, err
	}
	m, err := p.generate(ctx, token, order, ends)
	if err != nil {
		return nil, err
	}
	h = h.with(m, role)
	if err := p.note(ctx, r, h); err != nil {
		return nil, err
	}
	// Vault leases to a token that ended while it was at it, too, and then nothing
	// ends the lease in time.
	if _, err := p.engine.LookupChild(ctx, h.Accessor); err != nil {
		return nil, fmt.Errorf("the token after its use: %w", err)
	}
	granted, err := p.granted(name, order)
	if err != nil {
		return nil, err
	}
	if says := engines[role.Engine].says; says != nil {
		chosen, _ := role.chose(order)
		if err := says(m.fields, chosen); err != nil {
			return nil, fmt.Errorf("what %s made: %w", role.where(), err)
		}
	}
	return p.minted(name, granted, m, h, ends, r)
}

// minted holds what was made to what was asked, and writes the answer. Whatever
// is wrong with it has been noted, and will be ended.
func (p *provider) minted(name string, granted grant.Grant, m made, h handle, child time.Time, r broker.MintRequest) (*broker.Minted, error) {
	role := p.cfg.Roles[name]
	out := &broker.Minted{Granted: granted, Upstream: map[string]string{"path": role.where()}}
	if m.lease != "" {
		out.Upstream["lease"] = m.lease
	}
	var err error
	if out.Evidence, err = evidence(m, role); err != nil {
		return nil, err
	}
	if out.Expires, err = expiry(m, role, child, r.Expires); err != nil {
		return nil, err
	}
	if out.Handle, err = strictjson.Encode(h); err != nil {
		return nil, fmt.Errorf("encode handle: %w", err)
	}
	if out.Document, err = document(name, role, m, out.Expires); err != nil {
		return nil, fmt.Errorf("encode document: %w", err)
	}
	return out, nil
}

// child makes the child and notes it, and returns when it ends by Vault's own
// word.
func (p *provider) child(ctx context.Context, o order, r broker.MintRequest) (token secret.String, h handle, ends time.Time, err error) {
	if err := ctx.Err(); err != nil {
		return token, h, ends, broker.Fail(broker.Unavailable, err, "no time was left to ask Vault")
	}
	// Counted from before the call, and then less: it ends in time however long
	// the call takes, up to the margin.
	life := (min(r.Expires.Sub(p.deps.Now()), p.cfg.MaxLifetime.Duration) - margin).Truncate(time.Second)
	if life < time.Second {
		return token, h, ends, fmt.Errorf("no credential for less than %s", minLifetime)
	}
	token, h.Accessor, err = p.engine.CreateChild(context.WithoutCancel(ctx), o.Policy, life, r.Lease)
	if err != nil {
		return token, h, ends, err
	}
	if err := p.note(ctx, r, h); err != nil {
		return token, h, ends, err
	}
	ends, err = p.engine.LookupChild(ctx, h.Accessor)
	switch {
	case err != nil:
		return token, h, ends, err
	case ends.IsZero() || ends.After(r.Expires):
		// Vault takes what is asked for from the clock that it has.
		return token, h, ends, fmt.Errorf("the token ends at %s and not by %s: do the clocks agree?", ends, r.Expires)
	case ctx.Err() != nil:
		return token, h, ends, broker.Fail(broker.Unavailable, ctx.Err(), "no time was left to ask Vault")
	}
	return token, h, ends, nil
}

// note makes the handle durable. What cannot be noted is ended at once: nobody
// else may know of it.
func (p *provider) note(ctx context.Context, r broker.MintRequest, h handle) error {
	b, err := strictjson.Encode(h)
	if err == nil {
		err = r.Note(b)
	}
	if err == nil {
		return nil
	}
	_, failed := p.end(context.WithoutCancel(ctx), h, r.Expires)
	return errors.Join(fmt.Errorf("note the handle: %w", err), failed)
}

func (p *provider) generate(ctx context.Context, token secret.String, o order, ends time.Time) (m made, err error) {
	var params map[string]any
	if o.Method == "write" {
		params = make(map[string]any, len(o.Params)+1)
		for k, v := range o.Params {
			params[k] = v
		}
	}
	m.begun = p.deps.Now()
	if o.Lifetime != "" {
		left := (ends.Sub(m.begun) - margin).Truncate(time.Second)
		if left < time.Second {
			return m, broker.Fail(broker.Unavailable, nil, "no time was left to ask Vault")
		}
		params[o.Lifetime] = fmt.Sprintf("%ds", left/time.Second)
	}
	m.fields, m.lease, m.life, err = p.engine.Generate(context.WithoutCancel(ctx), token, o.Mount+"/"+o.Path, params)
	m.done = p.deps.Now()
	return m, err
}

// evidence says what Vault's answer is worth. A lease's id begins with the path
// that it was asked for by, as Vault keeps it: so this is the mount and the path
// of the role, and no other's. That repeats the request, and no more: what the
// role may do upstream stands nowhere in the answer, and whoever may write to the
// engine can change it under the same name. Without a lease not even that is said.
// What a grant chose is not said at all.
func evidence(m made, r Role) (broker.Evidence, error) {
	if m.lease == "" {
		return broker.Asserted, nil
	}
	if name, ok := strings.CutPrefix(m.lease, r.where()+"/"); !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("asked was %s, leased is %s", r.where(), m.lease)
	}
	if len(r.Choose) > 0 {
		return broker.Asserted, nil
	}
	return broker.Echoed, nil
}

// expiry is when the credential ends: with its child, or its lease if that comes
// first; or, if it cannot be revoked, by its own terms, which have to be in time.
func expiry(m made, r Role, child, asked time.Time) (time.Time, error) {
	if !r.lasts() && m.lasting(r) {
		return time.Time{}, fmt.Errorf("%s made what Vault cannot take back: the role wants revoke: none", r.where())
	}
	if !r.lasts() {
		leased := m.begun.Add(m.life)
		switch {
		case m.lease == "":
			return time.Time{}, fmt.Errorf("%s leases nothing, so that it cannot be revoked: the role wants revoke: none", r.where())
		case m.life > 0 && leased.Before(child):
			return leased, nil
		}
		return child, nil
	}
	switch ends := m.ends(r); {
	case ends.IsZero():
		return ends, fmt.Errorf("%s does not say when it ends, and cannot be revoked: the role wants ends", r.where())
	case ends.After(asked):
		return ends, fmt.Errorf("%s ends at %s and cannot be revoked: asked was %s", r.where(), ends, asked)
	default:
		return ends, nil
	}
}

// lasting reports by what an engine made that it cannot be taken back.
func (m made) lasting(r Role) bool {
	known := engines[r.Engine].lasting
	return known != nil && known(m.fields)
}

// ends is when a credential that cannot be revoked will be over: as its field
// says, or else its lease. Zero: nobody says.
func (m made) ends(r Role) time.Time {
	if until := engines[r.Engine].until; until != nil && r.Ends == "" {
		if t := until(m.fields); !t.IsZero() {
			return t
		}
	}
	if text := m.fields[r.Ends].Reveal(); r.Ends != "" {
		if seconds, err := strconv.ParseInt(text, 10, 64); err == nil && seconds > 0 {
			return time.Unix(seconds, 0)
		}
		t, _ := time.Parse(time.RFC3339, text) // zero, if it is not
		return t
	}
	if m.lease == "" || m.life <= 0 {
		return time.Time{}
	}
	return m.done.Add(m.life + time.Second - 1).Truncate(time.Second) // at the latest
}

// document is the credential: what Vault made, and by which role. Fields are
// texts; what Vault gave as something else is the JSON for it.
func document(name string, r Role, m made, expires time.Time) (secret.String, error) {
	fields := make(map[string]string, len(m.fields))
	for field, v := range m.fields {
		fields[field] = v.Reveal()
	}
	text, err := strictjson.Encode(map[string]any{
		"role": name, "mount": r.Mount, "path": r.Path, "fields": fields,
		"revocable": !r.lasts(), "expires_at": expires.UTC().Format(time.RFC3339),
	})
	return secret.New(string(text)), err
}
