package paste_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/paste"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// server is a paste server. generous: its tokens are for all pastes.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	tokens   map[string]*token
	generous bool
}

type token struct {
	Token  string            `json:"token"`
	Pastes map[string]string `json:"pastes"`
	Until  int64             `json:"until"`
	ended  bool
}

var everything = map[string]string{"p1": "write", "p2": "write", "p3": "write"}

func start(t *testing.T, generous bool) (*server, broker.Provider) {
	s := &server{tokens: map[string]*token{}, generous: generous}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tokens/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("PUT /tokens/{lease}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		k := &token{Token: "t-" + r.PathValue("lease")}
		if s.tokens[r.PathValue("lease")] != nil || json.NewDecoder(r.Body).Decode(k) != nil {
			w.WriteHeader(http.StatusConflict)
			return
		}
		k.Until = min(k.Until, time.Now().Add(time.Hour).Unix())
		if s.generous {
			k.Pastes = everything
		}
		s.tokens[r.PathValue("lease")] = k
		_ = json.NewEncoder(w).Encode(k)
	})
	mux.HandleFunc("DELETE /tokens/{lease}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		k := s.tokens[r.PathValue("lease")]
		if k == nil || k.ended {
			s.tokens[r.PathValue("lease")] = &token{ended: true}
			w.WriteHeader(http.StatusNotFound)
			return
		}
		k.ended = true
		w.WriteHeader(http.StatusNoContent)
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	p, err := paste.Open(t.Context(), "main", func(v any) error {
		*v.(*paste.Config) = paste.Config{URL: s.URL, Key: "env:KEY"}
		return nil
	}, upstream.Deps{
		Secret: func(context.Context, string) (secret.String, error) { return secret.New("key"), nil },
		HTTP:   func([]string, []byte) (*http.Client, error) { return s.Client(), nil }, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

// find returns the token of a credential, or nil.
func (s *server) find(m *broker.Minted) *token {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.tokens[strings.TrimPrefix(m.Token.Reveal(), "t-")]
	if k == nil || k.ended || time.Now().Unix() >= k.Until {
		return nil
	}
	return k
}

type session struct {
	s *server
	m *broker.Minted
}

func (session) Close() {}

func (x session) Do(_ context.Context, act string) error {
	level, id, _ := strings.Cut(act, " ")
	if k := x.s.find(x.m); k == nil || k.Pastes[id] != level && k.Pastes[id] != "write" {
		return fmt.Errorf("no: %w", providertest.ErrRefused)
	}
	return nil
}

func TestProvider(t *testing.T) {
	s, p := start(t, false)
	_, generous := start(t, true)
	of := func(levels map[string]any) grant.Grant {
		g, err := p.Describe().Schema.ParseValue(map[string]any{"pastes": levels})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	acts := map[string]grant.Grant{}
	for id := range everything {
		acts["read "+id], acts["write "+id] = of(map[string]any{id: "read"}), of(map[string]any{id: "write"})
	}
	providertest.Run(t, providertest.Harness{
		Provider: p, Upstream: "a paste server", Inexpressible: []grant.Grant{p.Describe().Schema.Everything()},
		Overgrants: map[string]broker.Provider{"tokens for everything": generous},
		Acts:       acts,
		Grant: func(r *rand.Rand) grant.Grant {
			levels := map[string]any{fmt.Sprint("p", 1+r.IntN(3)): "read"}
			levels[fmt.Sprint("p", 1+r.IntN(3))] = []string{"read", "write"}[r.IntN(2)]
			return of(levels)
		},
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			if s.find(m) == nil {
				return nil, providertest.ErrRefused
			}
			return session{s, m}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			return time.Unix(s.find(m).Until, 0), nil
		},
		Remains: func(context.Context) (left []string, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for lease, k := range s.tokens {
				if !k.ended {
					left = append(left, lease)
				}
			}
			return left, nil
		},
	})
}
