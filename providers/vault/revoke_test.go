package vault_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

var errUpstream = errors.New("vault answers 400: the upstream does not let go")

func TestRevokeIsHonest(t *testing.T) {
	t.Parallel()
	const leased, ended = "revoke lease", "revoke child"
	for name, c := range map[string]struct {
		before func(*fake, *minting)
		state  broker.OutcomeState // empty: an error
		asked  string              // of Vault, after minting
	}{
		"alive":              {func(*fake, *minting) {}, broker.Revoked, leased + "," + ended},
		"ended by Vault":     {func(f *fake, _ *minting) { clear(f.leases); clear(f.children) }, broker.AlreadyDead, ended},
		"ended, but a token": {func(f *fake, _ *minting) { clear(f.leases) }, broker.AlreadyDead, ended},
		// The child ended, and Vault has not managed to end what it leased.
		"the child ended alone":                          {func(f *fake, _ *minting) { clear(f.children) }, broker.Revoked, leased + "," + ended},
		"an upstream that does not let go":               {func(f *fake, _ *minting) { f.stuck = errUpstream }, "", leased},
		"a Vault that is down":                           {func(f *fake, _ *minting) { f.down = broker.Fail(broker.Unavailable, nil, "sealed") }, "", ""},
		"a token that does not end":                      {func(f *fake, _ *minting) { f.undead = errUpstream }, "", leased + "," + ended},
		"an upstream that still does not, past its time": {func(f *fake, r *minting) { f.stuck, f.now = errUpstream, r.Expires.Add(time.Second) }, broker.Stuck, leased},
		"a Vault without an answer, past its time": {func(f *fake, r *minting) {
			f.stuck, f.now = broker.Fail(broker.Unavailable, nil, "sealed"), r.Expires.Add(time.Second)
		}, "", leased},
		"nothing was noted":            {func(_ *fake, r *minting) { r.noted = nil }, broker.UnknownUntil, ""},
		"what was noted is unheard of": {func(_ *fake, r *minting) { r.noted = []byte(`{"role":"x"}`) }, "", ""},
		"what was noted is empty":      {func(_ *fake, r *minting) { r.noted = []byte(`{}`) }, "", ""},
		"the accessor was noted and no more": {func(_ *fake, r *minting) {
			r.noted = fmt.Appendf(nil, `{"accessor":"accessor of %s","lease":"","lasts":false,"ends":0}`, lease)
		}, broker.UnknownUntil, ended},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			p := on(t, f)
			r := ask(t, p, "database", "reader", f.now.Add(15*time.Minute))
			if _, err := p.Mint(t.Context(), r.MintRequest); err != nil {
				t.Fatal(err)
			}
			f.asked = nil
			c.before(f, r)
			o, err := r.tryRevoke(t, p)
			if (err != nil) != (c.state == "") || o.State != c.state || o.State == broker.UnknownUntil && !o.Until.Equal(r.Expires) {
				t.Errorf("%+v, %v, wanted %q", o, err, c.state)
			}
			if got := strings.Join(f.asked, ","); got != c.asked {
				t.Errorf("asked: %s", got)
			}
			if (c.state == broker.Revoked || c.state == broker.AlreadyDead) && len(f.leases) > 0 {
				t.Errorf("it is said to be dead, and is there: %v", f.leases)
			}
		})
	}
}

func TestAnUpstreamThatLetsGoLaterIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFake()
	p := on(t, f)
	r := ask(t, p, "database", "reader", f.now.Add(15*time.Minute))
	if _, err := p.Mint(t.Context(), r.MintRequest); err != nil {
		t.Fatal(err)
	}
	f.stuck = errUpstream
	if _, err := r.tryRevoke(t, p); !errors.Is(err, errUpstream) {
		t.Fatal(err)
	}
	f.stuck = nil
	if o := r.revoke(t, p); o.State != broker.Revoked {
		t.Errorf("%+v", o)
	}
	if o := r.revoke(t, p); o.State != broker.AlreadyDead {
		t.Errorf("again: %+v", o)
	}
}
