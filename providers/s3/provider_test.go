package s3_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestTemporaryKeysAtMinIO(t *testing.T) {
	s := newStore(t)
	p := opened(t, s.config("minio"), s.user)
	all, least := acts(t, true)
	long := make([]any, 0, 60)
	for i := range 60 {
		long = append(long, at("get", fmt.Sprintf("warehouse/a-rather-long-prefix-number-%d/", i)))
	}
	broad := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject","s3:DeleteObject"],"Resource":["arn:aws:s3:::warehouse/*","arn:aws:s3:::archive/*"]}]}`
	over := map[string]broker.Provider{}
	for name, change := range map[string]func(f url.Values){
		"keys without a policy":    func(f url.Values) { f.Del("Policy") },
		"keys with a wider policy": func(f url.Values) { f.Set("Policy", broad) },
		"keys with another's policy": func(f url.Values) {
			f.Set("Policy", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":["arn:aws:s3:::*"]}]}`)
		},
		"keys that live for a day": func(f url.Values) { f.Set("DurationSeconds", "86400") },
	} {
		c := s.config("minio")
		c.Endpoint = generous(t, s, change)
		over[name] = opened(t, c, s.user)
	}
	m := mint(t, over["keys without a policy"], parse(t, objects(at("get", "warehouse/a/"))), 20*time.Minute)
	if !m.Granted.Equal(p.Describe().Schema.Everything()) || m.Evidence != broker.Attested {
		t.Errorf("keys without a policy are said to be for %s", m.Granted) // which the broker alarms of
	}
	providertest.Run(t, providertest.Harness{
		Provider: p, Subject: "https://idp.example#ada", Grant: some(t), Acts: least, Pairs: 3200, Within: within(p),
		Variant: "keys", Upstream: "MinIO 2026-02", Oracle: "MinIO's policy engine", Overgrants: over, Remains: nobody,
		Inexpressible: parsed(t, []any{
			"*", objects(long...), objects(at("get", "*")), objects(at("get", "warehouse")), objects(at("get", "ware:")), objects(at("get", "Ware/k")),
			objects(at("list", "warehouse/k")), objects(at("get", "warehouse/a/../k")), objects(at("get", "warehouse//k")), objects(at("get", "warehouse/k:")),
			objects(at("get", `warehouse/"`)), objects(at("get", "warehouse/ä")),
		}),
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			d, err := read(m)
			return &keysInUse{s: s, all: all, keys: testbed.AWSKeys{ID: d.AccessKey, Secret: d.SecretKey, Session: d.SessionToken}}, err
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			d, err := read(m)
			if err != nil {
				return time.Time{}, err
			}
			c, err := claims(d.SessionToken)
			return time.Unix(c.Exp, 0), err
		},
	})
}

func TestPresignedURLsAtMinIO(t *testing.T) {
	s := newStore(t)
	p := opened(t, s.config("none"), s.user)
	if d := p.Describe(); d.Class != broker.Object || d.Evidence != broker.Asserted {
		t.Errorf("%s, %s", d.Class, d.Evidence)
	}
	all, least := acts(t, false)
	providertest.Run(t, providertest.Harness{
		Provider: p, Subject: "https://idp.example#ada", Grant: one(t), Acts: least, Remains: nobody,
		Variant: "urls", Upstream: "MinIO 2026-02", Rounds: 12,
		Inexpressible: parsed(t, []any{
			"*", objects(at("get", "warehouse/a/")), objects(at("list", "warehouse/a/")), objects(at("get", "warehouse/k"), at("get", "warehouse/l")),
			objects(at([]any{"get", "put"}, "warehouse/k")), objects(at("get", "warehouse/")), objects(at("get", "warehouse")), objects(at("get", "warehouse/../k")),
		}),
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			d, err := read(m)
			return &urlInUse{s: s, all: all, doc: d}, err
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			d, err := read(m)
			if err != nil {
				return time.Time{}, err
			}
			return urlEnds(d.URL)
		},
	})
}

// What the suite asks of exact upstreams: nothing that was not granted works.
func TestAURLIsForOneObjectAndOneMethod(t *testing.T) {
	s := newStore(t)
	p := opened(t, s.config("none"), s.user)
	all, least := acts(t, false)
	worked := 0
	for name, g := range least {
		m := mint(t, p, g, time.Minute)
		d, err := read(m)
		if err != nil {
			t.Fatal(err)
		}
		use := &urlInUse{s: s, all: all, doc: d}
		for other := range all {
			err := use.Do(t.Context(), other)
			switch {
			case other == name && err == nil:
				worked++
			case other == name:
				t.Errorf("%s: %v", name, err)
			case err == nil:
				t.Errorf("a URL to %s is good to %s", name, other)
			case !errors.Is(err, providertest.ErrRefused):
				t.Error(err)
			}
		}
	}
	if worked != len(all) {
		t.Errorf("%d of %d URLs worked", worked, len(all))
	}
}

// The user whose keys they are is the limit, whatever a mapping says.
func TestTheUserOfTheKeysIsTheLimit(t *testing.T) {
	s := newStore(t)
	for kind, variant := range map[string]string{"minio": "keys", "none": "URLs"} {
		p := opened(t, s.config(kind), s.user)
		d, err := read(mint(t, p, parse(t, objects(at("get", "secret/k"))), 16*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		var use providertest.Session = &urlInUse{s: s, all: map[string]act{"x": {"get", "secret", "k"}}, doc: d}
		if kind == "minio" {
			use = &keysInUse{s: s, all: map[string]act{"x": {"get", "secret", "k"}}, keys: testbed.AWSKeys{ID: d.AccessKey, Secret: d.SecretKey, Session: d.SessionToken}}
		}
		if err := use.Do(t.Context(), "x"); !errors.Is(err, providertest.ErrRefused) {
			t.Errorf("%s: %v", variant, err)
		}
	}
}

// mint makes a credential as the broker would have it made.
func mint(t *testing.T, p broker.Provider, g grant.Grant, life time.Duration) *broker.Minted {
	t.Helper()
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: "lease0123456789abcdefghi", Grant: g, Rendered: rendered, Expires: time.Now().Add(life), Pseudonym: "p5eudonym", Client: "client",
		Note: func([]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
