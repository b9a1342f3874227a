package google_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// some are scopes that say enough of each other.
var some = []string{
	"drive", "drive.readonly", "drive.metadata", "drive.metadata.readonly", "gmail.modify", "gmail.readonly", "gmail.send", "gmail.labels",
	"calendar", "calendar.events", "calendar.readonly", "calendar.events.readonly", "tasks", "tasks.readonly", "mail.google.com",
}

// using is a token that is used for what a scope allows.
type using struct {
	b     *bed
	token string
}

func (u using) Close() {}

func (u using) Do(_ context.Context, act string) error {
	t := u.b.Token(u.token)
	if t == nil {
		return fmt.Errorf("no such token: %w", providertest.ErrRefused)
	}
	for _, s := range t.Scopes {
		if s == full(act) {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", act, providertest.ErrRefused)
}

// scopeHarness is that of the flows whose grants are scopes.
func (b *bed) scopeHarness(t *testing.T, c google.Config) providertest.Harness {
	p := b.open(t, c)
	every := make([]string, len(some))
	for i, s := range some {
		every[i] = full(s)
	}
	b.Allowed = every
	text := func(scopes ...string) string {
		if c.Flow == "delegation" {
			return fmt.Sprintf(`{"account":"alice@acme.example","scopes":["%s"]}`, strings.Join(scopes, `","`))
		}
		return fmt.Sprintf(`{"scopes":["%s"]}`, strings.Join(scopes, `","`))
	}
	h := providertest.Harness{
		Provider: p, Subject: alice, Acts: map[string]grant.Grant{}, Variant: c.Flow, Upstream: "our double", Rounds: 16,
		Oracle: "Google's discovery documents",
		Grant: func(r *rand.Rand) grant.Grant {
			list := slices.Clone(some)
			r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			return parse(t, p, text(list[:1+r.IntN(4)]...))
		},
		Inexpressible: []grant.Grant{p.Describe().Schema.Everything(), parse(t, p, text("https://www.googleapis.com/auth/drive")), parse(t, p, text("Drive"))},
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			if b.Token(m.Token.Reveal()) == nil {
				return nil, providertest.ErrRefused
			}
			return using{b, m.Token.Reveal()}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			return b.Token(m.Token.Reveal()).Ends, nil
		},
		Remains: func(context.Context) ([]string, error) { return nil, nil },
		Within:  withinMethods(methods(t)),
	}
	// What is implied the double does not know, so that each act is one that nothing else
	// implies.
	for _, s := range []string{"drive", "calendar", "tasks", "mail.google.com"} {
		h.Acts[s] = parse(t, p, text(s))
	}
	return h
}

// withinMethods compares grants by the methods that Google says their scopes are enough
// for.
func withinMethods(known map[string]map[string]string) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	all := func(g grant.Grant) map[string]bool {
		out := make(map[string]bool)
		_, atoms := g.Dimension("scopes")
		for _, a := range atoms {
			for m := range known[full(a[0])] {
				out[m] = true
			}
		}
		return out
	}
	return func(_ context.Context, a, b grant.Grant) (bool, error) {
		mine, theirs := all(a), all(b)
		if len(mine) == 0 || len(theirs) == 0 {
			return false, fmt.Errorf("Google's description has no method for %s or %s", a, b)
		}
		for m := range mine {
			if !theirs[m] {
				return false, nil
			}
		}
		return true, nil
	}
}

// over opens the same settings at doubles that give too much.
func (b *bed) over(t *testing.T, c google.Config, how ...string) map[string]broker.Provider {
	out := make(map[string]broker.Provider)
	for _, h := range how {
		bad := newBed(t)
		bad.Allowed = b.Allowed
		if c.Flow == "user" {
			bad.link(t, some...)
		}
		bad.Over(h)
		settings := bad.settings(c.Flow)
		settings.Attest = c.Attest
		out[h] = bad.open(t, settings)
	}
	return out
}

func TestProviderOfUsers(t *testing.T) {
	b := newBed(t)
	b.link(t, some...)
	h := b.scopeHarness(t, b.settings("user"))
	h.Overgrants = b.over(t, b.settings("user"), doubles.GoogleIgnoresScope, doubles.GoogleAddsScope, doubles.GoogleLastsLonger, doubles.GoogleSaysNoScope)
	providertest.Run(t, h)
}

func TestProviderOfUsersAttested(t *testing.T) {
	b := newBed(t)
	b.link(t, some...)
	c := b.settings("user")
	c.Attest = true
	h := b.scopeHarness(t, c)
	h.Variant = "user-attested"
	h.Overgrants = b.over(t, c, doubles.GoogleIgnoresScope, doubles.GoogleAddsScope, doubles.GoogleAnotherClient)
	providertest.Run(t, h)
}

func TestProviderOfServiceAccounts(t *testing.T) {
	b := newBed(t)
	c := b.settings("service_account")
	c.Attest = true
	h := b.scopeHarness(t, c)
	h.Overgrants = b.over(t, c, doubles.GoogleAddsScope, doubles.GoogleLastsLonger)
	providertest.Run(t, h)
}

func TestProviderOfDelegation(t *testing.T) {
	b := newBed(t)
	c := b.settings("delegation")
	c.Attest = true
	h := b.scopeHarness(t, c)
	h.Overgrants = b.over(t, c, doubles.GoogleAddsScope, doubles.GoogleLastsLonger, doubles.GoogleAnotherAccount)
	providertest.Run(t, h)
}

// at writes one element of the dimension storage.
func at(bucket, prefix string, verbs ...string) string {
	return fmt.Sprintf(`{"verbs":["%s"],"bucket":"%s","prefix":"%s"}`, strings.Join(verbs, `","`), bucket, prefix)
}

func stored(t testing.TB, p broker.Provider, entries ...string) grant.Grant {
	t.Helper()
	return parse(t, p, `{"storage":[`+strings.Join(entries, ",")+`]}`)
}

// The little world of buckets that grants are tried in.
var (
	buckets  = []string{"sales", "sales-2"}
	prefixes = []string{"", "a/", "a/b/", "a/b/c/", "ab/", "é || resource/"}
	objects  = []string{"x", "a/x", "a/b/x", "a/b/c/x", "ab/x", "a/bx", "é || resource/x", "projects/_/buckets/sales/objects/a/x"}
	listed   = []string{"", "a", "a/", "a/b", "a/b/", "a/b/c/", "ab/", "é || resource/"}
)

// requests are everything that can be asked in it, with the verb and the prefix that it
// takes.
func requests() map[string]struct {
	doubles.StorageRequest
	verb, prefix string
} {
	type one = struct {
		doubles.StorageRequest
		verb, prefix string
	}
	out := make(map[string]one)
	for _, bucket := range buckets {
		for verb, permission := range map[string]string{"get": "storage.objects.get", "put": "storage.objects.create", "delete": "storage.objects.delete"} {
			for _, o := range objects {
				below := o[:strings.LastIndex(o, "/")+1]
				out[verb+" "+bucket+"/"+o] = one{doubles.StorageRequest{Permission: permission, Bucket: bucket, Object: o}, verb, below}
			}
		}
		for _, l := range listed {
			below := l[:strings.LastIndex(l, "/")+1]
			out["list "+bucket+"/"+l] = one{doubles.StorageRequest{Permission: "storage.objects.list", Bucket: bucket, Prefix: l}, "list", below}
		}
	}
	return out
}

// sets are verbs that there are roles for.
var sets = [][]string{
	{"get"}, {"list"}, {"put"}, {"get", "list"}, {"get", "put"}, {"list", "put"}, {"get", "list", "put"},
	{"list", "put", "delete"}, {"get", "list", "put", "delete"},
}

func randomStorage(t testing.TB, p broker.Provider, r *rand.Rand) grant.Grant {
	for {
		var entries []string
		for range 1 + r.IntN(3) {
			entries = append(entries, at(buckets[r.IntN(len(buckets))], prefixes[r.IntN(len(prefixes))], sets[r.IntN(len(sets))]...))
		}
		g := stored(t, p, entries...)
		if _, err := p.Render(g); err == nil {
			return g
		}
	}
}

// withinConditions has the language of conditions say what each boundary lets through.
func withinConditions(p broker.Provider) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	world := requests()
	return func(_ context.Context, a, b grant.Grant) (bool, error) {
		var rules [2][]doubles.BoundaryRule
		for i, g := range []grant.Grant{a, b} {
			options, err := p.Render(g)
			if err != nil {
				return false, err
			}
			if rules[i], err = doubles.Boundary(options); err != nil {
				return false, err
			}
		}
		for _, r := range world {
			mine, err1 := doubles.Within(rules[0], r.StorageRequest)
			theirs, err2 := doubles.Within(rules[1], r.StorageRequest)
			if err := errors.Join(err1, err2); err != nil || mine && !theirs {
				return false, err
			}
		}
		return true, nil
	}
}

type storing struct {
	b     *bed
	token string
}

func (s storing) Close() {}

func (s storing) Do(_ context.Context, act string) error {
	ok, err := s.b.Storage(s.token, requests()[act].StorageRequest)
	if err == nil && !ok {
		return fmt.Errorf("%s: %w", act, providertest.ErrRefused)
	}
	return err
}

func TestProviderOfStorage(t *testing.T) {
	b := newBed(t)
	c := b.settings("storage")
	p := b.open(t, c)
	h := providertest.Harness{
		Provider: p, Subject: alice, Acts: map[string]grant.Grant{}, Variant: "storage", Upstream: "our double", Rounds: 64, Oracle: "cel-go",
		Grant: func(r *rand.Rand) grant.Grant { return randomStorage(t, p, r) },
		Inexpressible: []grant.Grant{
			p.Describe().Schema.Everything(),
			stored(t, p, at("sales", "a/", "delete")), stored(t, p, at("sales", "a/", "get", "delete")),
			stored(t, p, at("sales", "a/", "put", "delete")), stored(t, p, at("sales", "a/b/", "list"), at("sales", "a/", "put", "delete")),
			stored(t, p, at("sales", "it's/", "get")), stored(t, p, at("sales", `a\\/`, "get")), stored(t, p, at("Sales", "a/", "get")),
			stored(t, p, at("sales/objects", "a/", "get")), stored(t, p, at("s", "a/", "get")),
			stored(t, p, at("sales", "/", "get")), stored(t, p, at("sales", strings.Repeat("long", 100)+"/", "get"), at("sales", strings.Repeat("more", 100)+"/", "get"),
				at("sales", strings.Repeat("mère", 90)+"/", "get", "list"), at("sales", strings.Repeat("much", 110)+"/", "get", "list")),
			stored(t, p, many(11)...),
		},
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			if b.Token(m.Token.Reveal()) == nil {
				return nil, providertest.ErrRefused
			}
			return storing{b, m.Token.Reveal()}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			return b.Token(m.Token.Reveal()).Ends, nil
		},
		Remains: func(context.Context) ([]string, error) { return nil, nil },
		Within:  withinConditions(p),
	}
	for name, r := range requests() {
		h.Acts[name] = stored(t, p, at(r.Bucket, r.prefix, r.verb))
	}
	h.Overgrants = b.over(t, c, doubles.GoogleDropsBoundary, doubles.GoogleBoundaryLasts, doubles.GoogleLastsLonger)
	providertest.Run(t, h)
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = at("sales", fmt.Sprintf("%d/", i), "get")
	}
	return out
}
