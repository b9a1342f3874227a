package entra_test

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/outbound"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/entra"
	"github.com/stint-dev/stint/scopes/grant"
)

// live is what a test at Entra itself needs: the settings of an entry, what its
// references stand for, and a user's access token for front or the profile.
type live struct {
	Settings  entra.Config      `yaml:"settings"`
	Secrets   map[string]string `yaml:"secrets"`
	Assertion string            `yaml:"assertion"`
	Profiles  []string          `yaml:"profiles"`
}

// At Entra itself: that the answer's scope names all of a registration's permissions, so
// that profiles are what the settings say.
func TestLive(t *testing.T) {
	file := os.Getenv("STINT_LIVE_ENTRA")
	if file == "" {
		t.Skip("this needs a tenant of Entra's: name a file in STINT_LIVE_ENTRA (docs/providers.md)")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var l live
	if err := strictyaml.Decode(file, data, &l); err != nil {
		t.Fatal(err)
	}
	p, err := entra.Open(t.Context(), "corp", func(v any) error { *v.(*entra.Config) = l.Settings; return nil }, upstream.Deps{
		Now: time.Now, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Secret: func(_ context.Context, ref string) (secret.String, error) { return secret.New(l.Secrets[ref]), nil },
		HTTP: func(hosts []string, _ []byte) (*http.Client, error) {
			return outbound.New(outbound.Policy{Hosts: hosts}), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Describe().Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, profile := range l.Profiles {
		m, err := mint(t, asserting{p, func() string { return l.Assertion }}, profile)
		if err != nil {
			t.Errorf("%s: %v", profile, err)
			continue
		}
		if ok, diffs := grant.Leq(m.Granted, of(t, p, l.Settings.Tenant, profile)); !ok || m.Evidence != broker.Attested {
			t.Errorf("%s: granted is %s: %v", profile, m.Granted, diffs)
		}
		if most := time.Now().Add(p.Describe().MaxLifetime); m.Expires.After(most) {
			t.Errorf("%s: it lives until %s, said is %s", profile, m.Expires, most)
		}
	}
}
