package google_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/google"
	"github.com/stint-dev/stint/scopes/grant"
)

// live is what a test at Google itself needs: the settings of an entry, its secret, a
// refresh token of an account that consented to the grant and to more (flow user), or an
// assertion that the pool takes, as Stint's keys sign it (the others).
type live struct {
	Settings  google.Config     `yaml:"settings"`
	Secret    string            `yaml:"secret,omitempty"`
	Refresh   string            `yaml:"refresh,omitempty"`
	Consented []string          `yaml:"consented,omitempty"`
	Assertion string            `yaml:"assertion,omitempty"`
	Subject   string            `yaml:"subject,omitempty"`
	Grant     map[string]string `yaml:"grant"` // by name: what is asked for, as JSON
}

// At Google itself: that a refresh narrows, how short a life it takes, that tokeninfo
// answers, and that a boundary holds.
func TestLive(t *testing.T) {
	file := os.Getenv("STINT_LIVE_GOOGLE")
	if file == "" {
		t.Skip("this needs an account at Google: name a file in STINT_LIVE_GOOGLE (docs/providers.md)")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var l live
	if err := strictyaml.Decode(file, data, &l); err != nil {
		t.Fatal(err)
	}
	b := &bed{}
	b.deps = newBed(t).deps
	b.deps.HTTP = func(hosts []string, _ []byte) (*http.Client, error) {
		return outbound.New(outbound.Policy{Hosts: hosts}), nil
	}
	b.deps.Secret = func(context.Context, string) (secret.String, error) { return secret.New(l.Secret), nil }
	b.deps.Assert = func(context.Context, map[string]any) (secret.String, error) { return secret.New(l.Assertion), nil }
	if l.Refresh != "" {
		_, err := b.deps.Parents.Put(t.Context(), upstream.ParentKey{Provider: "work", Subject: l.Subject}, &upstream.Parent{
			Account: broker.Account{ID: "live", Scopes: l.Consented}, Refresh: secret.New(l.Refresh),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p := b.open(t, l.Settings)
	if err := p.Describe().Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, text := range l.Grant {
		t.Run(name, func(t *testing.T) { liveMint(t, p, l, parse(t, p, text)) })
	}
}

func liveMint(t *testing.T, p broker.Provider, l live, g grant.Grant) {
	d := p.Describe()
	life := d.MaxLifetime
	if d.Settable { // the shortest that is said to be taken
		life = d.MinLifetime
	}
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(life).Truncate(time.Second)
	m, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: "abcdefghijklmnop12345678", Grant: g, Rendered: rendered, Subject: l.Subject, Pseudonym: "live-test",
		Expires: expires, Note: func([]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if ok, diffs := grant.Leq(m.Granted, g); !ok || m.Expires.After(expires.Add(time.Second)) {
		t.Errorf("granted is %s until %s: %v", m.Granted, m.Expires, diffs)
	}
	if o, err := p.Revoke(t.Context(), broker.RevokeLease{Handle: m.Handle, Expires: m.Expires}); err != nil || o.State != broker.NotRevocableUntil {
		t.Errorf("%+v, %v", o, err)
	}
	_, atoms := g.Dimension("storage")
	for _, a := range atoms {
		if a[0] != "list" || a[2] == "" {
			continue
		}
		for prefix, want := range map[string]int{a[2]: http.StatusOK, "": http.StatusForbidden} {
			if got := list(t, m, a[1], prefix); got != want {
				t.Errorf("listing %q of %s: %d, wanted %d", prefix, a[1], got, want)
			}
		}
	}
}

// list lists a bucket's objects below a prefix, and returns the status.
func list(t *testing.T, m *broker.Minted, bucket, prefix string) int {
	t.Helper()
	where := fmt.Sprintf("https://storage.googleapis.com/storage/v1/b/%s/o?%s", url.PathEscape(bucket), url.Values{"prefix": {prefix}, "maxResults": {"1"}}.Encode())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.Token.Reveal())
	resp, err := outbound.New(outbound.Policy{Hosts: []string{"storage.googleapis.com"}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
