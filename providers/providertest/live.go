package providertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Clauses that are tried at the upstream.

// resolves asks for the same as details and as a limit.
func resolves(ctx context.Context, h *Harness) error {
	r := random(4)
	d := h.Provider.Describe()
	everything := d.Schema.Everything()
	for range h.Rounds {
		g := h.Grant(r)
		for _, live := range []bool{false, true} {
			named, meant := g, g
			if h.Named != nil {
				named = h.Named(g)
			}
			if !live { // nobody is asked what names mean
				meant = named
			}
			out, err := h.Provider.Resolve(ctx, broker.ResolveRequest{Subject: h.Subject, Grants: []grant.Grant{named, everything}, Live: live})
			switch {
			case err != nil:
				return fmt.Errorf("resolve: %w", err)
			case len(out.Grants) != 2 || !out.Grants[0].Equal(meant) || !out.Grants[1].Equal(everything):
				return fmt.Errorf("%s resolves to %v", g, out.Grants)
			case !out.Request.Equal(everything) || out.Wanted != nil || len(out.Parts) > 0:
				return errors.New("nothing was named, and something was understood")
			case out.Basis == "":
				return errors.New("the entitlement has no basis")
			}
			if ok, diffs := grant.Leq(g, out.Entitlement); !ok {
				return fmt.Errorf("the subject %s may do %s, and is said not to: %v", h.Subject, g, diffs)
			}
		}
	}
	for name, bad := range map[string]broker.ResolveRequest{
		"a resource of another provider": {Resources: []string{d.Scheme + "://another.example/x"}},
		"a detail that does not exist":   {Details: []map[string]any{{"unheard-of": "x"}}},
		"empty details":                  {Details: []map[string]any{{}}},
	} {
		bad.Subject, bad.Grants = h.Subject, []grant.Grant{everything, everything}
		_, err := h.Provider.Resolve(ctx, bad)
		if code := broker.CodeOf(err); code != broker.BadTarget && code != broker.BadDetails {
			return fmt.Errorf("%s: %w", name, errors.Join(errors.New("is not refused as it should be"), err))
		}
	}
	return nil
}

// lives follows credentials from minting to revocation.
func lives(ctx context.Context, h *Harness) error {
	r := random(5)
	allowed, refused := 0, 0
	for range h.Rounds {
		l, err := h.mint(ctx, h.Grant(r))
		if err != nil {
			return err
		}
		s, err := h.open(ctx, l.minted)
		if err != nil {
			return fmt.Errorf("use a fresh credential: %w", err)
		}
		for _, act := range names(h.Acts) {
			may, _ := grant.Leq(h.Acts[act], l.req.Grant)
			err := s.Do(ctx, act)
			switch {
			case err != nil && !errors.Is(err, ErrRefused):
				return fmt.Errorf("%s: %w", act, err)
			case may && err != nil:
				return fmt.Errorf("%s allows %q, the upstream does not: %w", l.req.Grant, act, err)
			case !may && err == nil && (h.Provider.Describe().Class == broker.Exact || injects(h.Provider.Describe())):
				return fmt.Errorf("%s does not allow %q, the upstream does", l.req.Grant, act)
			case may:
				allowed++
			default:
				refused++
			}
		}
		began := time.Now()
		o, err := h.revoked(ctx, l, s)
		if err != nil {
			return err
		}
		h.result.ended(o, time.Since(began))
	}
	if len(h.Acts) > 0 && (allowed == 0 || refused == 0) {
		return fmt.Errorf("%d acts were allowed and %d refused, which shows nothing", allowed, refused)
	}
	return h.clean(ctx)
}

// revoked ends a lease under an open session, and returns what came of it.
func (h *Harness) revoked(ctx context.Context, l *lease, s Session) (broker.OutcomeState, error) {
	defer s.Close()
	o, err := h.end(ctx, l)
	if err != nil {
		return o.State, err
	}
	switch o.State {
	case broker.Revoked:
	case broker.NotRevocableUntil, broker.UnknownUntil:
		if o.Until.IsZero() {
			return o.State, fmt.Errorf("%s, without a time", o.State)
		}
		return o.State, nil
	default:
		return o.State, fmt.Errorf("the outcome of the first revocation is %s", o.State)
	}
	if err := h.dead(ctx, l.minted); err != nil {
		return o.State, err
	}
	for _, act := range names(h.Acts) {
		if err := s.Do(ctx, act); err == nil {
			return o.State, fmt.Errorf("a session that was open does %q after the revocation", act)
		}
	}
	return o.State, nil
}

func expires(ctx context.Context, h *Harness) error {
	r := random(6)
	d := h.Provider.Describe()
	for _, life := range []time.Duration{h.life(), d.MinLifetime + 2*time.Second, d.MaxLifetime, 365 * 24 * time.Hour} {
		if life <= 0 {
			continue
		}
		l, err := h.asked(h.Grant(r))
		if err != nil {
			return err
		}
		// What is asked is known to the second.
		l.req.Expires = time.Now().Add(life).Truncate(time.Second)
		if l.minted, err = h.Provider.Mint(ctx, l.req); err != nil {
			return fmt.Errorf("mint for %s: %w", life, err)
		}
		if l.minted.Handle != nil {
			l.noted = l.minted.Handle
		}
		ends, err := h.Ends(ctx, l.minted)
		if err != nil {
			return fmt.Errorf("ask the upstream for the expiry: %w", err)
		}
		said := l.minted.Expires
		switch {
		case said.IsZero() || said.After(l.req.Expires) && !endsEarly(d) || d.MaxLifetime > 0 && said.After(time.Now().Add(d.MaxLifetime)):
			return fmt.Errorf("asked for until %s, it says until %s", l.req.Expires, said)
		case d.Settable && ends.After(l.req.Expires):
			return fmt.Errorf("asked for until %s, the upstream has it live until %s", l.req.Expires, ends)
		case ends.Sub(said).Abs() > 2*time.Second:
			return fmt.Errorf("it says until %s, the upstream until %s", said, ends)
		}
		if _, err := h.end(ctx, l); err != nil {
			return err
		}
	}
	return h.clean(ctx)
}

// renews lets a credential live longer, and sees that it does not come back when it has
// ended.
func renews(ctx context.Context, h *Harness) error {
	d := h.Provider.Describe()
	if d.Renew == nil {
		return nil
	}
	l, err := h.asked(h.Grant(random(14)))
	if err != nil {
		return err
	}
	l.req.Expires = time.Now().Add(d.MinLifetime + time.Minute).Truncate(time.Second)
	if l.minted, err = h.Provider.Mint(ctx, l.req); err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	if l.minted.Handle != nil {
		l.noted = l.minted.Handle
	}
	r := broker.RenewRequest{Lease: l.req.Lease, Handle: l.noted, Grant: l.req.Grant, Expires: time.Now().Add(h.life()).Truncate(time.Second)}
	m, err := d.Renew(ctx, r)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	ends, err := h.Ends(ctx, l.minted)
	if err != nil {
		return fmt.Errorf("ask the upstream for the expiry: %w", err)
	}
	below, diffs := grant.Leq(m.Granted, l.req.Grant)
	switch {
	case !below:
		return fmt.Errorf("renewed is more than was asked: %v", diffs)
	case !m.Token.Empty() || !m.Document.Empty():
		return errors.New("renewing made another credential")
	case m.Expires.After(r.Expires) || !m.Expires.After(l.req.Expires) || ends.Sub(m.Expires).Abs() > 2*time.Second:
		return fmt.Errorf("asked for until %s, it says until %s, the upstream until %s", r.Expires, m.Expires, ends)
	}
	s, err := h.open(ctx, l.minted)
	if err != nil {
		return fmt.Errorf("use a credential that was renewed: %w", err)
	}
	if _, err := h.revoked(ctx, l, s); err != nil {
		return err
	}
	if _, err := d.Renew(ctx, r); err == nil {
		return errors.New("what was revoked is renewed")
	}
	if err := h.dead(ctx, l.minted); err != nil {
		return err
	}
	return h.clean(ctx)
}

func revokesTwice(ctx context.Context, h *Harness) error {
	for _, id := range []string{newLease(), "", "x", "'; DROP TABLE lease; --", "../../" + newLease(), "*"} {
		o, err := h.Provider.Revoke(ctx, broker.RevokeLease{Lease: id, Expires: time.Now().Add(time.Minute)})
		if err != nil || !o.State.Final() {
			return fmt.Errorf("revoking the unknown lease %q: %s, %v", id, o.State, err)
		}
	}
	l, err := h.mint(ctx, h.Grant(random(7)))
	if err != nil {
		return err
	}
	if _, err := h.end(ctx, l); err != nil {
		return err
	}
	for range 3 {
		o, err := h.end(ctx, l)
		// Where nothing was handed out there is nothing to find gone.
		if d := h.Provider.Describe(); err != nil || o.State == broker.Revoked && d.Revokes == "token" && !injects(d) {
			return fmt.Errorf("revoking what is gone: %s, %v", o.State, err)
		}
	}
	return h.clean(ctx)
}

// survivesLostAnswers throws answers away: what is left to the broker is the
// lease's id, and what was noted before.
func survivesLostAnswers(ctx context.Context, h *Harness) error {
	r := random(8)
	for range h.Rounds {
		l, err := h.asked(h.Grant(r))
		if err != nil {
			return err
		}
		m, err := h.Provider.Mint(ctx, l.req)
		if err != nil {
			return fmt.Errorf("mint: %w", err)
		}
		o, err := h.end(ctx, l)
		if err != nil {
			return err
		}
		if o.State != broker.UnknownUntil && o.State != broker.NotRevocableUntil {
			if err := h.dead(ctx, m); err != nil {
				return fmt.Errorf("after the outcome %s: %w", o.State, err)
			}
		}
	}
	return h.clean(ctx)
}

// refusesLateMints revokes a lease whose mint is still on its way.
func refusesLateMints(ctx context.Context, h *Harness) error {
	l, err := h.asked(h.Grant(random(9)))
	if err != nil {
		return err
	}
	if _, err := h.end(ctx, l); err != nil {
		return err
	}
	m, err := h.Provider.Mint(ctx, l.req)
	if err != nil {
		return h.clean(ctx)
	}
	// An upstream that cannot tell. The broker ends it when the answer comes; if
	// none does, a sweep has to.
	if sweep := h.Provider.Describe().Sweep; sweep != nil {
		ended, err := sweep(ctx, func(id string) bool { return id != l.req.Lease })
		if err != nil || len(ended) != 1 || ended[0] != l.req.Lease {
			return fmt.Errorf("a lease that was minted after its revocation is not swept, but %q: %v", ended, err)
		}
		return h.dead(ctx, m)
	}
	l.minted, l.noted = m, m.Handle
	_, err = h.end(ctx, l)
	return err
}

// survivesCancelling gives up at random moments. Whatever had come of it by then
// ends by the lease's id.
func survivesCancelling(ctx context.Context, h *Harness) error {
	r := random(10)
	cancelled := 0
	for i := range 3 * h.Rounds {
		l, err := h.asked(h.Grant(r))
		if err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
		m, err := h.Provider.Mint(short, l.req)
		cancel()
		if err != nil {
			cancelled++
		} else if m.Handle != nil {
			l.noted = m.Handle
		}
		if _, err := h.end(ctx, l); err != nil {
			return err
		}
		if m != nil && h.Provider.Describe().Revokes == "token" {
			if err := h.dead(ctx, m); err != nil {
				return err
			}
		}
	}
	if cancelled == 0 {
		return errors.New("a mint whose time is over before it begins succeeds")
	}
	return h.clean(ctx)
}

func sweeps(ctx context.Context, h *Harness) error {
	sweep := h.Provider.Describe().Sweep
	if sweep == nil {
		return nil
	}
	r := random(11)
	leases := make(map[string]*lease)
	orphan := make(map[string]bool)
	for i := range 2 * h.Rounds {
		l, err := h.mint(ctx, h.Grant(r))
		if err != nil {
			return err
		}
		leases[l.req.Lease], orphan[l.req.Lease] = l, i%2 == 0
	}
	ended, err := sweep(ctx, func(id string) bool { return !orphan[id] })
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if len(ended) != h.Rounds {
		return fmt.Errorf("%d of %d orphans were ended", len(ended), h.Rounds)
	}
	for _, id := range ended {
		if !orphan[id] {
			return fmt.Errorf("%s was ended, which is known", id)
		}
	}
	for id, l := range leases {
		if orphan[id] {
			if err := h.dead(ctx, l.minted); err != nil {
				return fmt.Errorf("orphan: %w", err)
			}
			continue
		}
		s, err := h.open(ctx, l.minted)
		if err != nil {
			return fmt.Errorf("use what was kept: %w", err)
		}
		s.Close()
		if _, err := h.end(ctx, l); err != nil {
			return err
		}
	}
	return h.clean(ctx)
}

// crowd is how many at once.
const crowd = 8

func survivesCrowds(ctx context.Context, h *Harness) error {
	r := random(12)
	few := []grant.Grant{h.Grant(r), h.Grant(r), h.Grant(r)}
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() {
			own := random(uint64(100 + i))
			for n := range h.Rounds {
				g := few[n%len(few)]
				if n%2 == 1 {
					g = h.Grant(own)
				}
				if errs[i] = h.inCrowd(ctx, g, n == h.Rounds/2); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return h.clean(ctx)
}

// inCrowd is one life in a crowd, and now and then a sweep in the middle of it.
func (h *Harness) inCrowd(ctx context.Context, g grant.Grant, clean bool) error {
	l, err := h.mint(ctx, g)
	if err != nil {
		return err
	}
	if sweep := h.Provider.Describe().Sweep; clean && sweep != nil {
		if ended, err := sweep(ctx, func(string) bool { return true }); err != nil || len(ended) > 0 {
			return fmt.Errorf("a sweep that keeps everything ended %q: %v", ended, err)
		}
	}
	s, err := h.open(ctx, l.minted)
	if err != nil {
		return fmt.Errorf("use a credential in a crowd: %w", err)
	}
	for _, act := range names(h.Acts) {
		if may, _ := grant.Leq(h.Acts[act], g); may {
			if err := s.Do(ctx, act); err != nil {
				return fmt.Errorf("%s in a crowd: %w", act, err)
			}
		}
	}
	_, err = h.revoked(ctx, l, s)
	return err
}
